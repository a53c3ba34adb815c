# Two commands do everything on a fresh Debian or Ubuntu: `make demo` and `make test`. `make setup` is their common
# first half.
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help setup demo test test-zoo test-cpus parity parity-zoo parity-trajectories parity-weights fuzz matrix wheel \
	clean

help:
	@echo "make demo    set up, then train, evaluate and segment on generated pictures; writes runs/demo/report.html"
	@echo "make test    set up, then run every test that needs no GPU, network or PyTorch"
	@echo "make test-zoo  set up, then run the contract test of every model of the zoo"
	@echo "make test-cpus  set up, then run the kernels' tests as Arm and other x86 processors do, by qemu where needed"
	@echo "make parity  compare with MMSegmentation on PyTorch, in a virtual environment of its own"
	@echo "make parity-zoo  compare every config of MMSegmentation 1.2.2, after make parity made its environment (hours)"
	@echo "make parity-trajectories  train models of a dozen families for 20 steps beside MMSegmentation (half an hour)"
	@echo "make parity-weights  compare models of Hugging Face's transformers, in a virtual environment of its own (hours)"
	@echo "make fuzz    set up, then give every reader 2,000 damaged files, at most 5 minutes each (tests/fuzz/run.py)"
	@echo "make matrix  try Python x NumPy x OpenCV in environments of their own; writes docs/matrix.md (hours;"
	@echo "             python3 tests/matrix.py --help)"
	@echo "make wheel   dist/jseg_jittor-*.whl, which holds configs and kernels"
	@echo "make setup   compiler, Python headers, $(VENV) with jseg and its pinned dependencies"
	@echo "make clean   remove generated runs and caches of this folder (not Jittor's cache)"

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py tools/setup.sh
	PYTHON="$(PYTHON)" sh tools/setup.sh $(VENV)
	@touch $@

demo: setup
	$(PY) tools/demo.py

test: setup
	$(PY) tests/run.py

test-zoo: setup
	$(PY) -m pytest -q --zoo tests/models/test_contract.py tests/export/test_onnx_zoo.py

test-cpus: setup
	$(PY) tests/ops/other_cpu.py

parity: setup
	$(PY) tests/parity/run.py

parity-zoo: setup
	$(PY) tests/parity/zoo.py --python .venv-parity/bin/python

parity-trajectories: setup
	$(PY) tests/parity/trajectory.py --python .venv-parity/bin/python

parity-weights: setup
	$(PY) tests/parity/hf.py

fuzz: setup
	$(PY) tests/fuzz/run.py

matrix:
	python3 tests/matrix.py

wheel: setup
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	@ls dist/*.whl

clean:
	rm -rf runs/demo build dist .pytest_cache
