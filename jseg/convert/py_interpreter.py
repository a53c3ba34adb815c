"""A Python subset for configs, interpreted from the syntax tree: values only, with bounded work.

What it knows: literals, names, arithmetic, comparisons, conditions, f-strings, indexing, `dict(...)` and a few harmless
builtins, methods of text, lists and dicts, `for` and comprehensions, `if`, `del`, augmented assignment, and imports,
whose names stay inert (`Reference`). What it cannot do: define or call functions, read attributes of objects, import,
open, or loop without end. Every step costs from one budget, and so does every element of a value that is compared,
printed or copied, because a few lines can build a structure whose full size is astronomic. The whole budget is used up
within about two seconds and 100 MB.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import operator
import re
from typing import Any, Callable, Iterator

from jseg.convert.py_builtins import BUILTINS, MAX_ITEMS, METHODS, MODULE_FUNCTIONS, Limits, check_value, plain_key
from jseg.errors import ConvertError

__all__ = ["Budget", "Interpreter", "Reference", "fault", "text_cost"]

MAX_STEPS = 300_000     # the largest of MMSegmentation's own configs takes about 4 000
MAX_NESTING = 80        # of expressions, statements and values


@dataclasses.dataclass(frozen=True)
class Reference:
    """Something imported, or an attribute of it: only its dotted name is known."""

    name: str


def fault(source: str, node: ast.AST | None, text: str) -> ConvertError:
    """The error for a place in a config."""
    line = getattr(node, "lineno", None)
    return ConvertError(f"{source}:{line}: {text}" if line else f"{source}: {text}")


class Budget(Limits):
    """Work and nesting that are left for one config with all its bases."""

    def __init__(self):
        self.steps = MAX_STEPS
        self.nesting = 0

    def spend(self, steps: int, source: str, node: ast.AST | None = None) -> None:
        """Take from the budget; ConvertError when it is used up."""
        self.steps -= steps
        if self.steps < 0:
            raise fault(source, node, f"takes more than {MAX_STEPS} steps to read; no real config does")

    @contextlib.contextmanager
    def deeper(self, source: str, node: ast.AST | None = None) -> Iterator[None]:
        """One level of nesting."""
        self.nesting += 1
        try:
            if self.nesting > MAX_NESTING:
                raise fault(source, node, f"nested deeper than {MAX_NESTING} levels, or a value contains itself")
            yield
        finally:
            self.nesting -= 1


def text_cost(value: Any) -> int:
    """Steps that one value costs by itself: one, and more for long text."""
    return 1 + len(value) // 16 if isinstance(value, str) else 1


_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
           ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.BitOr: operator.or_}
_UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARE = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
            ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
            ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}
_KNOWN_ERRORS = (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, OverflowError, AttributeError,
                 RecursionError)
_CONSTANTS = {"inf": float("inf"), "nan": float("nan")}  # how MMEngine prints them inside checkpoints


class Interpreter:
    """Run one config's statements; `names` holds its variables.

    Args:
        source: file name or description, for messages.
        budget: shared by a config and its bases.
    """

    def __init__(self, source: str, budget: Budget):
        self.source, self.budget = source, budget
        self.names: dict[str, Any] = {}
        self.load_module: Callable[[str, ast.AST], dict] | None = None

    def run(self, body: list[ast.stmt]) -> None:
        """Interpret statements in order."""
        for node in body:
            method = getattr(self, f"_run_{type(node).__name__}", None)
            if method is None:
                raise self._fault(node,
                                  f"{_words(node)} cannot be read; only plain settings can, nothing of a config is run")
            self.budget.spend(1, self.source, node)
            with self.budget.deeper(self.source, node), self._errors_placed(node):
                method(node)

    def value(self, node: ast.expr) -> Any:
        """Interpret one expression."""
        method = getattr(self, f"_value_{type(node).__name__}", None)
        if method is None:
            raise self._fault(node,
                              f"{_words(node)} cannot be read; only plain settings can, nothing of a config is run")
        self.budget.spend(1, self.source, node)
        with self.budget.deeper(self.source, node), self._errors_placed(node):
            return self._checked(method(node), node)

    # ---- statements --------------------------------------------------------------------------------------------------

    def _run_Assign(self, node: ast.Assign) -> None:
        value = self.value(node.value)
        for target in node.targets:
            self._store(target, value)

    def _run_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._store(node.target, self.value(node.value))

    def _run_AugAssign(self, node: ast.AugAssign) -> None:
        load = ast.copy_location(_as_load(node.target), node)
        result = self._binary(node.op, self.value(load), self.value(node.value), node)
        self._store(node.target, self._checked(result, node))

    def _run_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.value(node.value)

    def _run_Pass(self, node: ast.Pass) -> None:
        pass

    def _run_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._lookup(target)
                del self.names[target.id]
            elif isinstance(target, ast.Subscript):
                container = self._container(target)
                self.budget.spend(len(container) // 64, self.source, node)
                del container[self._key(target.slice)]
            else:
                raise self._fault(target, "only names and entries can be deleted")

    def _run_If(self, node: ast.If) -> None:
        self.run(node.body if self.value(node.test) else node.orelse)

    def _run_For(self, node: ast.For) -> None:
        for item in self._items(node.iter):
            self._store(node.target, item)
            self.run(node.body)
        self.run(node.orelse)

    def _run_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            self.names[alias.asname or name] = Reference(name)

    def _run_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                raise self._fault(node, "import * is read inside `with read_base():` only")
            if node.level == 0:
                self.names[alias.asname or alias.name] = Reference(f"{node.module}.{alias.name}")
            else:
                raise self._fault(node, "a relative import is read inside `with read_base():` only")

    def _run_With(self, node: ast.With) -> None:
        call = node.items[0].context_expr
        name = getattr(getattr(call, "func", None), "id", None) or getattr(getattr(call, "func", None), "attr", None)
        if len(node.items) != 1 or name != "read_base":
            raise self._fault(node, "`with` is read as `with read_base():` only")
        for inner in node.body:
            if not isinstance(inner, ast.ImportFrom):
                raise self._fault(inner, "inside read_base() stand only lines `from .file import *`")
            base = self.load_module("." * inner.level + (inner.module or ""), inner)
            for alias in inner.names:
                if alias.name == "*":
                    self.names.update(base)
                elif alias.name in base:
                    self.names[alias.asname or alias.name] = base[alias.name]
                else:
                    raise self._fault(inner, f"the base config has no {alias.name!r}")

    def _store(self, target: ast.expr, value: Any) -> None:
        self.budget.spend(1, self.source, target)
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Subscript):
            container, key = self._container(target), self._key(target.slice)
            if isinstance(key, slice):
                self._store_slice(container, key, value, target)
            else:
                container[key] = value
        elif isinstance(target, ast.Attribute):  # as ConfigDict allows: model.backbone = ...
            block = self.value(target.value)
            if not isinstance(block, dict) or target.attr.startswith("_"):
                raise self._fault(target, f"{ast.unparse(target)[:60]} is not an entry of a block")
            block[target.attr] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            values = list(value) if isinstance(value, (list, tuple)) else None
            if values is None or len(values) != len(target.elts):
                raise self._fault(target, f"{len(target.elts)} names need as many values")
            for element, item in zip(target.elts, values):
                self._store(element, item)
        else:
            raise self._fault(target, f"cannot assign to {_words(target)}")

    def _store_slice(self, container: Any, key: slice, value: Any, node: ast.AST) -> None:
        fits = isinstance(container, list) and isinstance(value, (list, tuple))
        if not fits or len(container) + len(value) > MAX_ITEMS:
            raise self._fault(node, f"only a list may take the place of a part of a list, with at most {MAX_ITEMS} "
                                    f"elements in all")
        self.budget.spend(len(container) + len(value), self.source, node)
        container[key] = list(value)

    # ---- expressions -------------------------------------------------------------------------------------------------

    def _value_Constant(self, node: ast.Constant) -> Any:
        if node.value is Ellipsis or isinstance(node.value, (complex, bytes)):
            raise self._fault(node, f"{node.value!r:.40} is no setting")
        return node.value

    def _value_Name(self, node: ast.Name) -> Any:
        return self._lookup(node)

    def _value_List(self, node: ast.List) -> list:
        return self._elements(node.elts)

    def _value_Tuple(self, node: ast.Tuple) -> tuple:
        return tuple(self._elements(node.elts))

    def _value_Set(self, node: ast.Set) -> set:
        return {self._hashable(item, node) for item in self._elements(node.elts)}

    def _value_Dict(self, node: ast.Dict) -> dict:
        result: dict = {}
        for key, item in zip(node.keys, node.values):
            if key is None:
                result.update(self._block(item))
            else:
                result[self._key(key)] = self.value(item)
        return result

    def _value_JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join([part.value if isinstance(part, ast.Constant) else self.value(part) for part in node.values])

    def _value_FormattedValue(self, node: ast.FormattedValue) -> str:
        value = self.value(node.value)
        self._charge_value(value, node)
        value = {-1: lambda v: v, 115: str, 114: repr, 97: ascii}[node.conversion](value)
        spec = self.value(node.format_spec) if node.format_spec is not None else ""
        if re.search(r"\d{4}", spec):
            raise self._fault(node, f"the width in {spec[:20]!r} is far too large")
        return format(value, spec)

    def _value_BinOp(self, node: ast.BinOp) -> Any:
        return self._binary(node.op, self.value(node.left), self.value(node.right), node)

    def _value_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if type(node.op) not in _UNARY:
            raise self._fault(node, f"{_words(node)} cannot be read")
        return _UNARY[type(node.op)](self.value(node.operand))

    def _value_BoolOp(self, node: ast.BoolOp) -> Any:
        stops = bool if isinstance(node.op, ast.Or) else operator.not_
        for part in node.values:
            value = self.value(part)
            if stops(value):
                break
        return value

    def _value_Compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for op, part in zip(node.ops, node.comparators):
            right = self.value(part)
            self._charge_value(left, node)
            self._charge_value(right, node)
            if not _COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def _value_IfExp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _value_Subscript(self, node: ast.Subscript) -> Any:
        return self._container(node)[self._key(node.slice)]

    def _value_Slice(self, node: ast.Slice) -> slice:
        return slice(*[None if part is None else self.value(part) for part in (node.lower, node.upper, node.step)])

    def _value_Attribute(self, node: ast.Attribute) -> Any:
        value = self.value(node.value)
        if isinstance(value, Reference) and not node.attr.startswith("__"):
            return Reference(f"{value.name}.{node.attr}")
        if isinstance(value, dict) and node.attr in value:  # as MMEngine's ConfigDict: model.backbone.depths
            return value[node.attr]
        raise self._fault(node, f"{ast.unparse(node)[-60:]}: attributes are not read, only entries of blocks")

    def _value_Call(self, node: ast.Call) -> Any:
        function, name = self._function(node.func)
        args = self._elements(node.args)
        kwargs: dict[str, Any] = {}
        for keyword in node.keywords:
            given = self._block(keyword.value) if keyword.arg is None else {keyword.arg: self.value(keyword.value)}
            for key, value in given.items():
                if not isinstance(key, str) or key in kwargs:
                    raise self._fault(node, f"{name}(...): argument {key!r:.40} is given twice or is no name")
                kwargs[key] = value
        for value in (*args, *kwargs.values()):
            if isinstance(value, (list, tuple, dict, set)):
                self.budget.spend(len(value), self.source, node)
        return function(self.budget, lambda v: self._charge_value(v, node), *args, **kwargs)

    def _value_ListComp(self, node: ast.ListComp) -> list:
        return [self.value(node.elt) for _ in self._comprehend(node.generators)]

    _value_GeneratorExp = _value_ListComp

    def _value_SetComp(self, node: ast.SetComp) -> set:
        return {self._hashable(self.value(node.elt), node) for _ in self._comprehend(node.generators)}

    def _value_DictComp(self, node: ast.DictComp) -> dict:
        return {self._key(node.key): self.value(node.value) for _ in self._comprehend(node.generators)}

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _comprehend(self, generators: list[ast.comprehension]) -> Iterator[None]:
        """Bind the loop variables in turn; names of the config are put back afterwards."""
        bound = {node.id for part in generators for node in ast.walk(part.target) if isinstance(node, ast.Name)}
        self.budget.spend(len(bound), self.source)
        before = {name: self.names[name] for name in bound if name in self.names}
        yield from self._nested_loops(generators)
        for name in bound:
            self.names.pop(name, None)
        self.names.update(before)

    def _nested_loops(self, generators: list[ast.comprehension]) -> Iterator[None]:
        if not generators:
            yield
            return
        first = generators[0]
        for item in self._items(first.iter):
            self._store(first.target, item)
            if all(self.value(test) for test in first.ifs):
                yield from self._nested_loops(generators[1:])

    def _items(self, node: ast.expr) -> list:
        value = self.value(node)
        if not isinstance(value, (list, tuple, dict, str, set)):
            raise self._fault(node, f"cannot go through {type(value).__name__}")
        items = list(value)
        self.budget.spend(len(items), self.source, node)
        return items

    def _elements(self, nodes: list[ast.expr]) -> list:
        values: list = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                values.extend(self._items(node.value))
            else:
                values.append(self.value(node))
        return values

    def _block(self, node: ast.expr) -> dict:
        value = self.value(node)
        if not isinstance(value, dict):
            raise self._fault(node, f"** needs a block, got {type(value).__name__}")
        self.budget.spend(len(value), self.source, node)
        return value

    def _container(self, node: ast.Subscript) -> Any:
        value = self.value(node.value)
        if not isinstance(value, (list, tuple, dict, str)):
            raise self._fault(node, f"{ast.unparse(node.value)[:60]} has no entries")
        return value

    def _key(self, node: ast.expr) -> Any:
        key = self.value(node)
        return key if isinstance(key, slice) else self._hashable(key, node)

    def _hashable(self, key: Any, node: ast.AST) -> Any:
        flat = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, Reference) or plain_key(part) for part in flat) or len(flat) > 8:
            raise self._fault(node, "a key must be text or a number of at most 60 bits")
        if isinstance(key, tuple):
            self.budget.spend(100, self.source, node)  # a config can make their hashes collide
        return key

    def _function(self, node: ast.expr) -> tuple[Callable, str]:
        """The function a call names: a builtin, one of the few module functions, or a method of a value."""
        if isinstance(node, ast.Name) and node.id not in self.names and node.id in BUILTINS:
            return BUILTINS[node.id], node.id
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            methods = METHODS.get(type(owner), {})
            if node.attr in methods:
                bound = methods[node.attr]
                if isinstance(owner, list):  # `insert` and its like move every element
                    self.budget.spend(len(owner) // 64, self.source, node)
                return (lambda budget, weigh, *args, **kwargs: bound(budget, weigh, owner, *args, **kwargs)), node.attr
        if isinstance(node, (ast.Name, ast.Attribute)):
            known = self.names.get(node.id) if isinstance(node, ast.Name) else (
                Reference(f"{owner.name}.{node.attr}") if isinstance(owner, Reference) else None)
            if isinstance(known, Reference) and known.name in MODULE_FUNCTIONS:
                return MODULE_FUNCTIONS[known.name], known.name
        raise self._fault(node, f"calls {ast.unparse(node)[:60]!r}, which is not among the functions that are read "
                                f"({', '.join(sorted(BUILTINS))}); nothing of a config is run, write the value out")

    def _lookup(self, node: ast.Name) -> Any:
        if node.id in self.names:
            return self.names[node.id]
        if node.id in _CONSTANTS:
            return _CONSTANTS[node.id]
        raise self._fault(node, f"the name {node.id!r} is not defined before this line")

    def _binary(self, op: ast.operator, left: Any, right: Any, node: ast.AST) -> Any:
        if type(op) not in _BINARY:
            raise self._fault(node, f"{_words(op)} cannot be read")
        if isinstance(left, Reference) or isinstance(right, Reference):
            raise self._fault(node, "cannot calculate with an imported name")
        self.budget.check_operands(type(op).__name__, left, right)
        if isinstance(op, ast.Mod) and isinstance(left, str):
            self._charge_value(right, node)
        return _BINARY[type(op)](left, right)

    def _charge_value(self, value: Any, node: ast.AST) -> None:
        """Pay for every element of a value, counted as often as it is reached."""
        self.budget.spend(text_cost(value), self.source, node)
        if isinstance(value, (dict, list, tuple, set)):
            with self.budget.deeper(self.source, node):
                for item in value.values() if isinstance(value, dict) else value:
                    self._charge_value(item, node)

    def _checked(self, value: Any, node: ast.AST) -> Any:
        try:
            check_value(value)
        except ValueError as error:
            raise self._fault(node, str(error)) from error
        makes = (isinstance(node, (ast.Call, ast.Subscript, ast.BinOp, ast.AugAssign))
                 and isinstance(value, (list, tuple, dict, set)))
        self.budget.spend(len(value) if makes else text_cost(value) - 1, self.source, node)
        return value

    @contextlib.contextmanager
    def _errors_placed(self, node: ast.AST) -> Iterator[None]:
        """Turn what Python says about a wrong value into a ConvertError with the place."""
        try:
            yield
        except ConvertError:
            raise
        except _KNOWN_ERRORS as error:
            text = f"no entry {error}" if isinstance(error, KeyError) else str(error)
            raise self._fault(node, f"{_words(node)}: {text[:200]}") from error

    def _fault(self, node: ast.AST, text: str) -> ConvertError:
        return fault(self.source, node, text)


def _as_load(node: ast.expr) -> ast.expr:
    """An assignment's target as an expression to read."""
    if isinstance(node, ast.Name):
        return ast.Name(node.id, ast.Load())
    if isinstance(node, ast.Subscript):
        return ast.Subscript(node.value, node.slice, ast.Load())
    return ast.Attribute(node.value, node.attr, ast.Load())


_TERMS = {"FunctionDef": "a function definition", "AsyncFunctionDef": "a function definition",
          "ClassDef": "a class definition", "Lambda": "a lambda", "While": "a while loop", "Try": "try/except",
          "Call": "this call", "BinOp": "this calculation", "Subscript": "this index", "Global": "global",
          "Raise": "raise", "Assert": "assert", "Await": "await", "Yield": "yield",
          "NamedExpr": "an assignment inside an expression", "Starred": "* here"}


def _words(node: ast.AST) -> str:
    return _TERMS.get(type(node).__name__, f"this {type(node).__name__}")
