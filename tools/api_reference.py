"""Write docs/api.md from the docstrings: `python tools/api_reference.py` after one of them changed.

What is in it: the names of `dir(jseg)`, classes with their public methods, and what `LISTED` names beside. Sources are
parsed, not imported, so neither Jittor nor a compiler is needed. A test fails when the page is old.
"""

from __future__ import annotations

import argparse
import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
# beside the names of jseg itself: (title, module, names)
LISTED = (("Returned by these", "jseg.engine.run_state", ("Step",)),
          ("Returned by these", "jseg.data.regions", ("Region",)),
          ("Returned by these", "jseg.data.preprocess", ("Batch",)),
          ("Returned by these", "jseg.data.loader", ("Loader",)),
          ("Returned by these", "jseg.models.segmentor", ("Segmentor",)),
          ("Pictures and files", "jseg.data.io", ("read_image", "read_mask")),
          ("Pictures and files", "jseg.data.write", ("encode_image", "encode_mask", "write_image", "write_mask")),
          ("Pictures and files", "jseg.data.overlay", ("overlay", "legend_below")),
          ("Pictures and files", "jseg.data.colours", ("spread_colours", "read_palette")),
          ("Pictures and files", "jseg.data.regions", ("find_regions", "coco_annotation", "coco_file",
                                                       "geojson_file")),
          ("Errors", "jseg.errors", ("JsegError", "ConfigError", "DataError", "ConvertError", "CheckpointError",
                                     "KernelError", "ExportError", "RuntimeSetupError", "WriteError")))
SECTIONS = ("Args", "Shape", "Attributes", "Returns", "Raises", "State")
# what an item of a section begins with
NAMED = {"Args": r"[\w, *]+", "Shape": r"[\w, ]+", "Attributes": r"[\w, *]+", "Raises": r"[\w, ]+|`\w+`"}
HEAD = """# API reference

Made from the docstrings by `python tools/api_reference.py`. [python.md](python.md) shows the names at work; what a
config may name is listed by `jseg names`, and `jseg names RandomCrop` prints one entry's description.
"""


def main() -> int:
    """Write the page, or see whether it is current; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when the page is old")
    if parser.parse_args().check:
        current = PAGE.read_text(encoding="utf-8") == page()
        print(f"{PAGE.relative_to(ROOT)} is {'current' if current else 'old: run python tools/api_reference.py'}")
        return 0 if current else 1
    sys.path.insert(0, str(ROOT))
    from jseg.files import write_atomically
    write_atomically(PAGE, page().encode())
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


def page() -> str:
    """The whole page as it should be."""
    parts, before = [HEAD, "## `jseg`\n"], None
    for name, module in homes().items():
        parts.append(entry(module, name, f"jseg.{name}"))
    for title, module, names in LISTED:
        if title != before:
            parts.append(f"## {title}\n")
            before = title
        parts += [entry(module, name, f"{module}.{name}") for name in names]
    return "\n".join(parts)


def homes() -> dict[str, str]:
    """Names of jseg and the modules they come from, as jseg/__init__.py states them."""
    for node in ast.parse((ROOT / "jseg" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_HOMES":
            return ast.literal_eval(node.value)
    raise SystemExit("jseg/__init__.py: no _HOMES")


def entry(module: str, name: str, shown: str) -> str:
    """The section of one function or class."""
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name), None)
    if node is None:
        raise SystemExit(f"{path.relative_to(ROOT)}: no {name}")
    if isinstance(node, ast.FunctionDef):
        return f"### `{shown}`\n\n{signature(node, name)}{prose(node)}"
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    start = next((m for m in methods if m.name == "__init__"), None)
    text = f"### `{shown}`\n\n{signature(start, name, bound=True) if start else ''}{prose(node)}"
    for method in methods:
        if method.name.startswith("_") or not ast.get_docstring(method):
            continue
        is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in method.decorator_list)
        head = "" if is_property else signature(method, method.name, bound=True)
        text += f"\n#### `{name}.{method.name}`\n\n{head}{prose(method)}"
    return text


def signature(node: ast.FunctionDef, name: str, *, bound: bool = False) -> str:
    """The call as Python shows it, broken at commas, in a fence."""
    arguments = ast.parse(ast.unparse(node)).body[0].args
    if bound and not any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list):
        arguments.args = arguments.args[1:]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None and node.name != "__init__" else ""
    text = f"{name}({ast.unparse(arguments)}){returns}"
    if len(text) > 110:
        parts = re.split(r", (?![^\[\(]*[\]\)])", ast.unparse(arguments))
        text = f"{name}(\n    " + ",\n    ".join(parts) + f",\n){returns}"
    return f"```python\n{text}\n```\n\n"


def prose(node: ast.AST) -> str:
    """A docstring in Markdown: its sections as bold words with lists, examples as code."""
    lines, section = [], ""
    for line in (ast.get_docstring(node) or "").splitlines():
        word, colon, rest = line.partition(":")
        if colon and word in SECTIONS and (not rest or rest.startswith(" ")):
            section = word
            lines += ["", f"**{word}**:{rest}", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            item, colon, rest = line.strip().partition(":")
            if section in NAMED and colon and re.fullmatch(NAMED[section], item):
                lines.append(f"- `{item.strip('`')}`:{escaped(rest)}")
            else:
                lines.append(("  " if section in NAMED else "") + escaped(line.strip()))
        else:
            section = section if line.startswith(" ") else ""
            lines.append(f"  {escaped(line.strip())}" if section else line if line.startswith(" ") else escaped(line))
            lines += [""] if line == "Example:" else []
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip()) + "\n"


def escaped(line: str) -> str:
    """A line whose `<` outside of code is no beginning of an HTML tag."""
    return "`".join(part.replace("<", "\\<") if i % 2 == 0 else part for i, part in enumerate(line.split("`")))


if __name__ == "__main__":
    sys.exit(main())
