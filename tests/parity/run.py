"""Compare jseg with MMSegmentation on PyTorch, in a virtual environment of its own: `make parity`.

PyTorch and Jittor never share a process. The environment is made once, in .venv-parity; `--python` names one that
exists already. What runs: the live comparison of SegNeXt (logits, loss, every gradient, running statistics, whole,
slide and augmented label maps), of the transforms on real photographs, of the dataset converters, and of converted
checkpoints for every model of configs.yaml, whose results go to docs/parity.md.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ["torch==2.13.0", "mmengine==0.10.7", "mmcv-lite==2.1.0", "mmsegmentation==1.2.2", "ftfy", "regex", "numpy",
            "opencv-python<4.12", "scipy", "nibabel", "cityscapesscripts", "h5py", "pandas",
            "mmdet==3.3.0",  # heads that classify masks; the last release for mmcv 2.1.0
            "mmpretrain==1.2.0"]  # backbones ConvNeXt and PoolFormer; its torchvision is not needed (zoo_operators.py)


WEIGHTS_PACKAGES = ["torch==2.13.0", "transformers==5.24.0", "pillow", "scipy"]  # of `make parity-weights`


def referee(folder: pathlib.Path, packages: list[str] = PACKAGES) -> str:
    """The Python of an environment, which is made where it is missing or was made of other packages."""
    python, done, wanted = folder / "bin" / "python", folder / ".installed", "\n".join(packages)
    if not done.exists() or done.read_text() != wanted:
        print(f"parity: making {folder} with {packages[0]} and others, once", flush=True)
        if not python.exists():
            venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
                       check=True)
        done.write_text(wanted)
    return str(python)


def main() -> int:
    """Run every comparison; 0 when all agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="a Python that has torch, mmengine, mmcv-lite and mmsegmentation 1.2.2")
    args = parser.parse_args()
    python = args.python or referee(ROOT / ".venv-parity")
    environment = {**os.environ, "JSEG_REFEREE_PYTHON": python}
    steps = {"models and transforms": [sys.executable, "-m", "pytest", "-q", "tests/models/test_segnext_parity.py",
                                       "tests/data/test_transforms.py", "tests/test_benchmark.py",
                                       "tests/test_opponents.py"],
             "converters": [python, str(HERE / "converters_mmseg.py")],
             "converted checkpoints": [sys.executable, str(HERE / "compare.py"), "--python", python]}
    failed = []
    for name, command in steps.items():
        print(f"parity: {name}", flush=True)
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            failed.append(name)
    print(f"parity: {'FAILED: ' + ', '.join(failed) if failed else 'all agree'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
