"""Rules of the house that a machine can check: sizes, docstrings, imports, kernel folders, shipped configs."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess
import sys
import unicodedata

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_LINES, MAX_FUNCTION, MAX_WIDTH = 500, 80, 120  # aim at 300 and 60
FOLDERS = ("jseg", "tools", "tests", "configs")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*")
                 if p.suffix in (".py", ".cc", ".cuh", ".h", ".yaml"))
TEXTS = SOURCES + sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "tools").glob("*.sh"),
                          ROOT / "Makefile", ROOT / "setup.py"])
PYTHON = [p for p in SOURCES if p.suffix == ".py"] + [ROOT / "setup.py"] * (ROOT / "setup.py").exists()
LIBRARY = [p for p in PYTHON if ROOT / "jseg" in p.parents]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if "_base_" not in p.parts)
KERNELS = sorted(p.parent for p in (ROOT / "jseg" / "ops").glob("*/__init__.py"))

# A room may import rooms on a lower floor, and itself.
UNDEFINED = ("PIL", "_answer")  # a type in quotes; a global that is set later
FLOORS = {"errors": 0, "files": 1, "text": 2, "yaml_reader": 2, "weights_header": 3, "weights_file": 4,
          "runtime_cuda": 0, "runtime_compiler": 0, "runtime_signals": 0, "runtime_toolchain": 0.3,
          "runtime_numpy": 0.3, "runtime_import": 0.6, "runtime": 1, "registry": 2, "rules": 3, "config": 3,
          "ops": 4, "layers": 5, "losses": 6, "metrics": 6, "models": 7, "data": 8, "engine": 9, "report": 10,
          "export": 9.5, "serve": 10, "bench": 11, "cli": 12, "__main__": 13}
CONVERT = {"errors", "text", "files", "weights_header", "weights_file", "runtime", "runtime_signals", "registry",
           "config", "layers", "models", "data", "engine"}  # what convert/ may import; only cli imports convert/
# loader workers must stay light
DATA = {"errors", "files", "text", "yaml_reader", "runtime", "runtime_signals", "registry", "rules", "config",
        "metrics"}
NUMPY_ONLY = ("config.py", "metrics.py", "errors.py", "files.py", "text.py", "yaml_reader.py", "weights_header.py",
              "weights_file.py", "registry.py", "rules.py", "runtime.py", "data", "report", "convert/torch_file.py")


def name_of(path: pathlib.Path) -> str:
    """A path as test ids and messages show it."""
    return str(path.relative_to(ROOT))


@functools.lru_cache(maxsize=None)
def parsed(path: pathlib.Path) -> ast.Module:
    """The syntax tree of a file, always the same."""
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: pathlib.Path) -> str:
    """jseg/data/io.py -> jseg.data.io; a package is named by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: pathlib.Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in a file, inside functions too; relative ones resolved."""
    found = []
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def room(dotted: str) -> str | None:
    """jseg.data.io.read_image -> data; None for `jseg` itself and other packages."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "jseg" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines; split it by idea (at most {MAX_LINES}, aim at 300)"


def columns(line: str) -> int:
    """How wide a line is shown: Chinese characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def may_be_wide(path: pathlib.Path, line: str) -> bool:
    """Addresses cannot be broken; in Markdown also rows of tables and indented commands."""
    if re.search(r"https?://\S{60}", line):
        return True
    return path.suffix == ".md" and line.startswith(("|", "    "))


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_lines_are_short(path):
    wide, fenced = [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        fenced ^= path.suffix == ".md" and line.startswith("```")
        width = columns(line) if path.suffix == ".md" else len(line)
        if width > MAX_WIDTH and not fenced and not may_be_wide(path, line):
            wide.append(f"{name_of(path)}:{number}: {width} columns")
    assert not wide, f"at most {MAX_WIDTH}:\n" + "\n".join(wide)


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_functions_are_short(path):
    long = [f"{name_of(path)}:{n.lineno}: {n.name} has {n.end_lineno - n.lineno + 1} lines"
            for n in ast.walk(parsed(path))
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.end_lineno - n.lineno >= MAX_FUNCTION]
    assert not long, f"at most {MAX_FUNCTION}, aim at 60: {long}"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_wildcard_imports(path):
    stars = [f"{name_of(path)}:{line}: {name}" for line, name in imported(path) if name.endswith(".*")]
    assert not stars


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_files_suit_the_oldest_python(path):
    """Python 3.9: no newer grammar, and `X | None` in annotations only where they are not evaluated."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 9))
    lazy = any(isinstance(n, ast.ImportFrom) and n.module == "__future__" and n.names[0].name == "annotations"
               for n in tree.body)
    hints = [h for n in ast.walk(tree) for h in (getattr(n, "annotation", None), getattr(n, "returns", None))
             if isinstance(h, ast.AST)]
    unions = [h.lineno for h in hints for part in ast.walk(h) if isinstance(part, ast.BinOp)
              and isinstance(part.op, ast.BitOr)]
    assert lazy or not unions, f"{name_of(path)}:{unions}: add `from __future__ import annotations`"
    assert not [n for n in ast.walk(tree) if isinstance(n, getattr(ast, "Match", ()))], "match needs Python 3.10"


def test_every_folder_is_a_package():
    """A folder without __init__.py would be left out of an installed jseg."""
    folders = {p.parent for p in LIBRARY}
    assert not [name_of(f) for f in sorted(folders) if not (f / "__init__.py").is_file()]


def test_files_that_are_no_python_are_installed():
    """Kernels and the index of weights are named in setup.py's package_data."""
    call = parsed(ROOT / "setup.py").body[-1].value
    globs = ast.literal_eval(next(word.value for word in call.keywords if word.arg == "package_data"))
    named = {p for package, patterns in globs.items() for pattern in patterns
             for p in ROOT.joinpath(*package.split(".")).glob(pattern)}
    others = {p for p in (ROOT / "jseg").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert not [name_of(p) for p in sorted(others - named)]


def documented_methods() -> dict[ast.ClassDef, set[str]]:
    """Class -> methods with a docstring, its own and those of its bases inside jseg; two files may use one name."""
    classes: dict[str, list] = {}
    for node in (n for path in LIBRARY for n in ast.walk(parsed(path)) if isinstance(n, ast.ClassDef)):
        classes.setdefault(node.name, []).append(node)

    def collect(node: ast.ClassDef, seen: frozenset = frozenset()) -> set[str]:
        own = {f.name for f in node.body if isinstance(f, ast.FunctionDef) and ast.get_docstring(f)}
        names = {b.id if isinstance(b, ast.Name) else getattr(b, "attr", "") for b in node.bases} - seen
        bases = [base for name in names for base in classes.get(name, ())]
        return own.union(*(collect(base, seen | names) for base in bases))

    return {node: collect(node) for nodes in classes.values() for node in nodes}


def test_public_names_have_docstrings():
    """Modules, public classes, functions and methods; `execute` and `grad` are described by their class."""
    known, missing = documented_methods(), []
    for path in LIBRARY:
        tree = parsed(path)
        if tree.body and not ast.get_docstring(tree):
            missing.append(f"{name_of(path)}: the file itself")
        for node in tree.body:
            if (isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
                and not ast.get_docstring(node)):
                missing.append(f"{name_of(path)}:{node.lineno}: {node.name}")
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                missing += [f"{name_of(path)}:{f.lineno}: {node.name}.{f.name}"
                            for f in node.body if isinstance(f, ast.FunctionDef)
                            and not f.name.startswith("_") and f.name not in known[node] | {"execute", "grad"}]
    assert not missing, "no docstring:\n" + "\n".join(missing)


@pytest.mark.parametrize("folder", KERNELS, ids=lambda p: p.name)
def test_kernel_folders_are_complete(folder):
    missing = [name for name in ("op.py", "reference.py", "cases.py", "cpu.cc") if not (folder / name).is_file()]
    assert not missing, f"{name_of(folder)} lacks {', '.join(missing)}"


def test_every_kernel_is_exported_by_name():
    """jseg/ops/__init__.py names its functions for editors; a folder with an op.py belongs there."""
    folders = sorted(path.parent.name for path in (ROOT / "jseg" / "ops").glob("*/op.py"))
    names = {alias.asname or alias.name for node in parsed(ROOT / "jseg" / "ops" / "__init__.py").body
             if isinstance(node, ast.ImportFrom) for alias in node.names}
    assigned = {node.targets[0].id: ast.literal_eval(node.value) for node in
                parsed(ROOT / "jseg" / "ops" / "__init__.py").body if isinstance(node, ast.Assign)}
    assert list(assigned["KERNELS"]) == folders, "name the folder in KERNELS"
    assert set(folders) <= names & set(assigned["__all__"]), "import the function and name it in __all__"


def test_every_name_is_defined():
    """A name that only a rare error message asks for is not found by running."""
    from pyflakes import checker, messages
    lost = [f"{name_of(path)}:{found.lineno}: {found.message_args[0]}" for path in LIBRARY
            for found in checker.Checker(parsed(path), name_of(path)).messages
            if isinstance(found, messages.UndefinedName) and found.message_args[0] not in UNDEFINED]
    assert not lost, "undefined: " + ", ".join(lost)


def test_imports_go_one_way():
    wrong = []
    for path in LIBRARY:
        here = room(module_name(path))
        if here is None:  # jseg/__init__.py names the entry points lazily
            continue
        for line, name in imported(path):
            there = room(name)
            if there is None or there == here or there.startswith("__version"):
                continue
            if here == "convert":
                allowed = there in CONVERT
            elif there == "convert":  # training starts from another library's file, and reads it only then
                allowed = here == "cli" or name_of(path) == "jseg/engine/start.py"
            elif there == "export":  # predict opens exported files, and only then; the benchmarks time them
                allowed = here == "cli" or name_of(path) in ("jseg/engine/predict.py", "jseg/bench/runtimes.py",
                                                             "jseg/bench/handover.py")
            elif here == "data":
                allowed = there in DATA
            else:
                allowed = FLOORS.get(there, 99) < FLOORS[here]
            if not allowed:
                wrong.append(f"{name_of(path)}:{line}: {here} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_floor():
    rooms = {room(module_name(p)) for p in LIBRARY} - {None, "convert"}
    assert rooms <= set(FLOORS), f"say in FLOORS where {sorted(rooms - set(FLOORS))} belong"


def numpy_only() -> list[pathlib.Path]:
    """Files that must work without Jittor."""
    places = [ROOT / "jseg" / name for name in NUMPY_ONLY]
    return [p for place in places
            for p in (sorted(place.rglob("*.py")) if place.is_dir() else [place] * place.exists())]


@pytest.mark.parametrize("path", numpy_only(), ids=name_of)
def test_numpy_rooms_do_not_name_jittor(path):
    assert not [f"{name_of(path)}:{line}" for line, name in imported(path) if name.split(".")[0] == "jittor"]


def test_numpy_rooms_do_not_load_jittor():
    """Import them all in a fresh process: nothing may bring Jittor (or PyTorch) in on the side."""
    names = sorted({module_name(p) for p in numpy_only()} | {"jseg", "jseg.cli"})
    program = (f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
               "    assert not {'jittor', 'torch'} & set(sys.modules), name\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_pass_check(path):
    from jseg.config import load_config
    from jseg.engine.check import check_config

    assert check_config(load_config(path), where=name_of(path)) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_open_with_their_command(path):
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(name_of(path) in line
               for line in head), "the header comment should name the command that runs the config"


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "jseg" / "cli").glob("[!_]*.py")))
def test_tools_hand_over_to_commands(name):
    """Every command has a script tools/<command>.py (convert: convert_mmseg.py),
    which hands over to it and does nothing else.
    """
    text = (ROOT / "tools" / f"{'convert_mmseg' if name == 'convert' else name}.py").read_text()
    assert len(text.splitlines()) <= 8 and f'main(["{name}", *sys.argv[1:]])' in text


def test_the_docs_list_what_is_supported():
    from jseg.cli.names import supported
    text = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- jseg names -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == supported(), "jseg names --write docs/configs.md"


def test_the_index_lists_every_page():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w.]+)\)", text))
    pages = {p.name for p in (ROOT / "docs").iterdir() if p.suffix in (".md", ".ipynb")} - {"README.md"}
    assert linked == pages, "docs/README.md names each page once"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_readme_names_files_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = (set(re.findall(r"(?:configs|tools|docs|weights|tests|jseg)/[\w./-]*\w\.(?:yaml|py|md|safetensors)", text))
             - {"weights/segnext_tiny_ade20k.safetensors"})
    assert len(paths) > 3 and not [p for p in sorted(paths) if not (ROOT / p).exists()]
