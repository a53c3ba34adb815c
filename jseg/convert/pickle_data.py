"""Read a pickle as data: nothing in it is imported or called, and a short file cannot cost much memory or time.

A pickle is a program for a small stack machine. This file runs that machine (protocols 0 to 5) over plain values only.
Names of classes and functions become `Global` records; calling one gives what a caller's handler builds for exactly
that name, and an `Inert` record for every other. So code hidden in a file is stored, never run; a file that names a
function whose only use here would be an attack (os.system) is refused, so that its owner hears of it.

What a hostile file may cost is bounded. Every step is charged what it can allocate, copies made on request (a list
handed to `OrderedDict` a thousand times) included; the sum may exceed the file's size by `ALLOWANCE`. Memo numbers must
be dense. Dict keys other than text must be few and small, because a file could choose them with equal hashes. Integers
are at most 255 bytes long, names of classes and functions 500 characters. So a file of a few megabytes is done within
`MAX_STEPS` small steps: two seconds and 100 MB.

Format: CPython's Lib/pickletools.py describes every opcode; this reader is written from that description.
"""

from __future__ import annotations

import struct
from typing import Any, Callable, Mapping

import numpy as np

from jseg.errors import ConvertError

__all__ = ["Global", "Inert", "brief", "dict_key", "load_pickle"]

# bytes that values may take beyond twice the size of their pickle; SegNeXt-L with AdamW state: 16 MB
ALLOWANCE = 32 << 20
MAX_STEPS = 1_500_000  # opcodes; about a second
MAX_LINE = 1 << 20     # of the text opcodes of protocol 0
MAX_NAME = 500         # characters of a module and a name in it
MAX_ODD_KEYS = 2_000   # keys of dicts that are neither text nor whole numbers: 2 million comparisons if all collide
_HARMFUL_MODULES = frozenset(
    "os posix nt subprocess pty popen2 commands shutil sys socket ctypes _ctypes runpy importlib imp code codeop "
    "webbrowser pip asyncio multiprocessing _posixsubprocess threading _thread signal pickle _pickle cPickle marshal "
    "tempfile urllib http ftplib smtplib telnetlib pdb bdb profile cProfile timeit trace doctest ensurepip venv "
    "zipimport pkgutil pydoc requests".split())
_HARMFUL_NAMES = frozenset(
    f"{module}.{name}" for module in ("builtins", "__builtin__", "__builtins__")
    for name in "eval exec execfile compile open file __import__ input breakpoint exit quit setattr delattr apply "
                "globals".split()
) | {"torch.load", "torch.hub.load", "torch.serialization.load", "numpy.load", "jittor.load",
     "numpy.testing._private.utils.runstring", "operator.methodcaller", "operator.attrgetter"}


class Global:
    """A class or function that a pickle names; it is not looked up anywhere. `str()` gives "module.name"."""

    __slots__ = ("module", "name", "full_name")

    def __init__(self, module: str, name: str):
        self.module, self.name, self.full_name = module, name, f"{module}.{name}"

    def __str__(self) -> str:
        return self.full_name

    __repr__ = __str__

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Global) and self.full_name == other.full_name

    def __hash__(self) -> int:
        return hash(self.full_name)


class Inert:
    """An object the pickle wanted to build and that was left alone:
    what it is, its arguments, its state, its elements.
    """

    __slots__ = ("kind", "args", "state", "items")

    def __init__(self, kind: Any, args: tuple = ()):
        self.kind, self.args, self.state, self.items = kind, args, None, []

    def __repr__(self) -> str:
        return f"Inert({brief(self.kind)})"


def brief(value: Any, length: int = 60) -> str:
    """A value in a message: one line, printable, short to make whatever the value is."""
    if isinstance(value, (bytes, bytearray, str)):
        return ascii(value[:length]) + ("..." if len(value) > length else "")
    if isinstance(value, (Global, bool, float, type(None))) or (isinstance(value, int) and abs(value) < 1 << 64):
        return ascii(str(value)[:2 * length])[1:-1]
    if isinstance(value, (tuple, list)) and len(value) <= 8 and not any(isinstance(v, (tuple, list)) for v in value):
        return f"({', '.join(brief(v, length // 2) for v in value)})"
    if isinstance(value, Inert):
        return f"a {brief(value.kind) if isinstance(value.kind, Global) else 'nameless object'}"
    return f"a {type(value).__name__}"


def dict_key(key: Any) -> Any:
    """Return `key` if it may be a dict's key: text, or a small number, or a short flat tuple of those; else ValueError.

    What a key costs to hash and compare is bounded with it: large tuples are hashed anew at every use.
    """
    parts = key if isinstance(key, tuple) and len(key) <= 8 else (key,)
    for part in parts:
        if not (isinstance(part, (str, bytes, bool, float, type(None), Global))
                or (isinstance(part, int) and abs(part) < 1 << 63)):
            raise ValueError(f"{brief(part)} as a dict's key; only text, numbers and short flat tuples are taken")
    return key


def load_pickle(data, handlers: Mapping[str, Callable], persistent: Callable[[Any], Any] | None = None, *,
                start: int = 0, where: str = "pickle", steps: int = MAX_STEPS) -> tuple[Any, int]:
    """Run the pickle that starts at `data[start]`.

    Args:
        data: bytes, memoryview or mmap.
        handlers: "module.name" -> function(args: tuple) that builds the value of calling that global. It may copy the
            text and containers among its arguments once, and no more.
        persistent: builds the value of a persistent id (torch's storages); None refuses them.
        where: names the file in messages.
        steps: opcodes that are run at most.
    Returns:
        (value, position after the STOP opcode). Values may share parts and contain themselves, as in any pickle.
    Raises:
        ConvertError: truncated, malformed, harmful, too costly, or with values this reader does not take.
    """
    machine = _Machine(data, handlers, persistent, start, where)
    try:
        return machine.run(steps), machine.at
    except (IndexError, KeyError, struct.error, ValueError, TypeError, AttributeError, OverflowError,
            RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConvertError(f"{where}: damaged pickle at byte {machine.at}: {text or type(error).__name__}") from error


class _Mark:
    pass


_MARK = _Mark()


class _Machine:
    """The stack machine; one action an opcode, found through `_TABLE`."""

    def __init__(self, data, handlers, persistent, start, where):
        self.data, self.handlers, self.persistent, self.where = memoryview(data), handlers, persistent, where
        self.at, self.stack, self.memo, self.globals = start, [], {}, {}
        self.left, self.odd_keys = ALLOWANCE + 2 * len(self.data), 0

    def run(self, steps: int) -> Any:
        data, table, end = self.data, _TABLE, len(self.data)
        for _ in range(steps):
            if self.at >= end:
                self.take(1)
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.pop()
            entry = table.get(code)
            if entry is None:
                raise ConvertError(f"{self.where}: damaged: byte {self.at - 1} of the pickle, {bytes([code])!r}, is no "
                                   "opcode")
            self.left -= entry[1]
            if self.left < 0:
                self.charge(0)
            entry[0](self)
        raise ConvertError(f"{self.where}: a pickle of more than {steps} steps; no checkpoint needs as many")

    def charge(self, count: int) -> None:
        """Account for `count` bytes about to be allocated."""
        self.left -= count
        if self.left < 0:
            raise ConvertError(f"{self.where}: its values would take far more memory than the {len(self.data)} bytes "
                               f"they are written in, at byte {self.at}; no checkpoint does that")

    # reading ---------------------------------------------------------------------------------------------------------

    def take(self, count: int) -> memoryview:
        if count < 0 or self.at + count > len(self.data):
            raise ConvertError(f"{self.where}: truncated: {count} bytes wanted at byte {self.at} of the pickle, "
                               f"{len(self.data) - self.at} are left; download or copy it again")
        piece = self.data[self.at:self.at + count]
        self.at += count
        return piece

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int, encoding: str, errors: str = "strict") -> str:
        piece = self.take(count)
        wide = encoding == "utf-8" and count and np.frombuffer(piece, np.uint8).max() >= 0xC4  # something beyond U+00FF
        # one emoji makes every character of a text take 4 bytes, more while it is read
        self.charge(8 * count if wide else count)
        return str(piece, encoding, errors)

    def line(self, encoding: str = "utf-8") -> str:
        for size in (256, 8192, MAX_LINE):
            if size == MAX_LINE:
                self.charge(MAX_LINE // 16)  # so much is copied to look for the end
            found = bytes(self.data[self.at:self.at + size]).find(b"\n")
            if found >= 0:
                self.charge(found)
                text = str(self.take(found), encoding)
                self.at += 1
                return text
        raise ValueError("a line without an end")

    # stack -----------------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise ValueError("a mark where a value is needed")
        return value

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def pop_mark(self) -> list:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1:]
                del self.stack[index:]
                return values
        raise ValueError("no mark on the stack")

    def store(self, index: int) -> None:
        if not 0 <= index <= 2 * len(self.memo) + 256:  # writers count up from 0 or 1
            raise ValueError(f"memo {brief(index)} is far beyond the {len(self.memo)} values stored")
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"memo {brief(index)} was never stored")
        self.push(self.memo[index])

    # objects ---------------------------------------------------------------------------------------------------------

    def name(self, module: str, name: str) -> Global:
        if len(module) + len(name) > MAX_NAME:
            raise ValueError(f"a global whose name has {len(module) + len(name)} characters; at most {MAX_NAME} are "
                             f"read")
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
            if module.partition(".")[0] in _HARMFUL_MODULES or found.full_name in _HARMFUL_NAMES:
                raise ConvertError(f"{self.where}: names {brief(found)}, which weights have no use for: the file tries "
                                   "to run code when it is opened. Nothing was run. Do not open it with PyTorch or "
                                   "Jittor; get it from its authors again")
            self.charge(300)
        return found

    def call(self, target: Any, args: Any) -> Any:
        args = args if isinstance(args, tuple) else (args,)
        if not isinstance(target, Global):
            return Inert(target, args)
        handler = self.handlers.get(target.full_name)
        if handler is None:
            return Inert(target, args)
        for value in args[:16]:
            if isinstance(value, (str, bytes)):
                self.charge(len(value))
            elif isinstance(value, (list, tuple, dict)):
                self.charge(100 * len(value))
        return handler(args)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Inert):
            target.state = state
        elif hasattr(target, "set_pickle_state"):
            self.charge(sum(len(value) for value in state[:16] if isinstance(value, str)))
            target.set_pickle_state(state)
        elif not isinstance(target, dict):  # an OrderedDict's attributes (`_metadata`) are of no use here
            raise ValueError(f"state for a {type(target).__name__}")

    def set_items(self, pairs: list) -> None:
        target = self.top()
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        self.charge(40 * len(pairs))
        for key, value in zip(pairs[::2], pairs[1::2]):
            if not isinstance(key, str):
                dict_key(key)
                self.odd_keys += not isinstance(key, int)  # at most nine whole numbers of 63 bits share a hash
                if self.odd_keys > MAX_ODD_KEYS:
                    raise ValueError(f"more than {MAX_ODD_KEYS} keys that are neither text nor whole numbers")
            if isinstance(target, dict):
                target[key] = value
            elif isinstance(target, Inert):
                target.items.append((key, value))
            else:
                raise ValueError(f"items for a {type(target).__name__}")

    def extend(self, values: list) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Inert):
            target.items.extend(values)
        else:
            raise ValueError(f"elements for a {type(target).__name__}")


# -- actions -----------------------------------------------------------------------------------------------------------


def _integer(text: str) -> int:
    if len(text) > 620:
        raise ValueError("an integer of more than 620 digits")
    return int(text)


def _float_line(m: _Machine) -> None:
    text = m.line()
    if len(text) > 400:
        raise ValueError("a number of more than 400 characters")
    m.push(float(text))


def _integer_line(m: _Machine) -> None:
    text = m.line()
    m.push({"00": False, "01": True}[text] if text in ("00", "01") else _integer(text))


def _quoted_line(m: _Machine) -> None:
    text = m.line()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise ValueError("an unquoted STRING")
    m.push(text[1:-1].encode("latin-1").decode("unicode_escape"))


def _escaped_line(m: _Machine) -> None:
    text = m.line("latin-1")
    m.charge(4 * len(text))
    m.push(text.encode("latin-1").decode("raw_unicode_escape"))


def _long(form: str) -> Callable:
    def action(m: _Machine) -> None:
        size = m.number(form)
        if size > 255:
            raise ValueError(f"an integer of {size} bytes; at most 255 are taken")
        m.push(int.from_bytes(m.take(size), "little", signed=True))
    return action


def _text(form: str, encoding: str = "utf-8") -> Callable:
    return lambda m: m.push(m.text(m.number(form), encoding, "surrogatepass" if encoding == "utf-8" else "strict"))


def _bytes(form: str) -> Callable:
    def action(m: _Machine) -> None:
        piece = m.take(m.number(form))
        m.charge(len(piece))
        m.push(bytes(piece))
    return action


def _tuple(count: int) -> Callable:
    def action(m: _Machine) -> None:
        values = [m.pop() for _ in range(count)]
        m.push(tuple(reversed(values)))
    return action


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("a global whose name is not text")
    m.push(m.name(module, name))


def _reduce(m: _Machine) -> None:
    args, target = m.pop(), m.pop()
    m.push(m.call(target, args))


def _newobj_ex(m: _Machine) -> None:
    keywords, args, target = m.pop(), m.pop(), m.pop()
    m.push(m.call(target, args) if not keywords else Inert(target, (args, keywords)))


def _inst(m: _Machine) -> None:
    target = m.name(m.line(), m.line())
    m.push(m.call(target, tuple(m.pop_mark())))


def _obj(m: _Machine) -> None:
    target, *args = m.pop_mark()
    m.push(m.call(target, tuple(args)))


def _dict(m: _Machine) -> None:
    pairs = m.pop_mark()
    m.push({})
    m.set_items(pairs)


def _set_item(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _persistent(read: Callable) -> Callable:
    def action(m: _Machine) -> None:
        identity = read(m)
        if m.persistent is None:
            raise ConvertError(f"{m.where}: refers to data outside itself ({brief(identity)}); not a complete file")
        m.push(m.persistent(identity))
    return action


def _discard(m: _Machine) -> None:
    del m.stack[-1]


def _extension(form: str) -> Callable:
    return lambda m: m.push(Inert(Global("copyreg", "extension"), (m.number(form),)))


def _actions() -> dict[int, tuple[Callable, int]]:
    """Opcode -> (action, bytes it may allocate besides what it charges itself)."""
    put, get, mark_call, small = 128, 16, 400, 48
    byte, half, word = "<B", "<H", "<I"
    named = {
        "(": (lambda m: m.push(_MARK), 16), "0": (_discard, 8), "1": (lambda m: m.pop_mark(), 8),
        "2": (lambda m: m.push(m.top()), 16), "F": (_float_line, small), "I": (_integer_line, 300),
        "S": (_quoted_line, 64), "L": (lambda m: m.push(_integer(m.line().rstrip("L"))), 300),
        "V": (_escaped_line, 64),
        "J": (lambda m: m.push(m.number("<i")), small), "K": (lambda m: m.push(m.number(byte)), 16),
        "M": (lambda m: m.push(m.number(half)), small), "N": (lambda m: m.push(None), 16),
        "G": (lambda m: m.push(m.number(">d")), small), "T": (_text(word, "latin-1"), 80),
        "U": (_text(byte, "latin-1"), 80), "X": (_text(word), 80), "B": (_bytes(word), 64),
        "C": (_bytes(byte), 64), "}": (lambda m: m.push({}), 300), "]": (lambda m: m.push([]), 300),
        ")": (lambda m: m.push(()), 16), "d": (_dict, 300), "l": (lambda m: m.push(m.pop_mark()), 300),
        "t": (lambda m: m.push(tuple(m.pop_mark())), 300), "a": (lambda m: m.extend([m.pop()]), 100),
        "e": (lambda m: m.extend(m.pop_mark()), 80), "s": (_set_item, 200),
        "u": (lambda m: m.set_items(m.pop_mark()), 200), "b": (lambda m: m.build(), 64),
        "c": (lambda m: m.push(m.name(m.line(), m.line())), 16), "i": (_inst, mark_call), "o": (_obj, mark_call),
        "R": (_reduce, mark_call), "P": (_persistent(_Machine.line), 100), "Q": (_persistent(_Machine.pop), 100),
        "p": (lambda m: m.store(_integer(m.line())), put), "q": (lambda m: m.store(m.number(byte)), put),
        "r": (lambda m: m.store(m.number(word)), put), "g": (lambda m: m.recall(_integer(m.line())), get),
        "h": (lambda m: m.recall(m.number(byte)), get), "j": (lambda m: m.recall(m.number(word)), get),
    }
    table = {ord(code): entry for code, entry in named.items()}
    table.update({
        # PROTO, NEWOBJ
        0x80: (lambda m: m.take(1), 8), 0x81: (_reduce, mark_call),
        0x82: (_extension(byte), mark_call), 0x83: (_extension(half), mark_call), 0x84: (_extension("<i"), mark_call),
        0x85: (_tuple(1), 300), 0x86: (_tuple(2), 300), 0x87: (_tuple(3), 300),
        0x88: (lambda m: m.push(True), 16), 0x89: (lambda m: m.push(False), 16),
        0x8A: (_long(byte), 300), 0x8B: (_long(word), 300),
        0x8C: (_text(byte), 80), 0x8D: (_text("<Q"), 80), 0x8E: (_bytes("<Q"), 64), 0x96: (_bytes("<Q"), 64),
        0x8F: (lambda m: m.push(Inert(Global("builtins", "set"))), 600), 0x90: (lambda m: m.extend(m.pop_mark()), 80),
        0x91: (lambda m: m.push(Inert(Global("builtins", "frozenset"), (m.pop_mark(),))), 600),
        0x92: (_newobj_ex, 400), 0x93: (_stack_global, 16),
        0x94: (lambda m: m.store(len(m.memo)), put),                                                       # MEMOIZE
        # FRAME, READONLY_BUFFER
        0x95: (lambda m: m.take(8), 8), 0x98: (lambda m: None, 8),
    })
    return table


_TABLE = _actions()
