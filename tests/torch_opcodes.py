"""Pickles of torch checkpoints written by hand, opcode by opcode: what a hostile file may say."""

from __future__ import annotations

import struct
from typing import Sequence


def text(value: str) -> bytes:
    """Push a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """Push an integer of any size."""
    raw = value.to_bytes(max(1, (value.bit_length() + 8) // 8), "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor(shape: Sequence[int] = (2,), strides: Sequence[int] = (1,), *, offset: int = 0, count: int = 2,
           key: str = "0", storage: str = "FloatStorage") -> bytes:
    """Push a tensor: torch._utils._rebuild_tensor_v2 on a storage of `count` values."""
    sizes = [b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, strides)]
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\n" + storage.encode() + b"\n"
            + text(key) + text("cpu")
            + integer(count) + b"tQ" + integer(offset) + sizes[0] + sizes[1] + b"\x89ccollections\nOrderedDict\n)RtR")


def program(value: bytes, name: str = "w") -> bytes:
    """{"state_dict": {name: value}} as a pickle; `value` is opcodes."""
    return b"\x80\x02}" + text("state_dict") + b"}" + text(name) + value + b"ss."
