"""CLIP's tokens of a text: byte pairs joined by a fixed list of merges.

Papers: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016 (the merges); Radford
et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021.
clip_merges.txt.gz: the 48,894 merges that CLIP uses, one a line ("i n"), the first lines of the file
bpe_simple_vocab_16e6.txt.gz of https://github.com/openai/CLIP (MIT licence, OpenAI 2021).

Numbers: 0-255 the bytes, 256-511 the bytes at the end of a word, then the merges in their order, 49406 the start and
49407 the end of a text. Deviation: broken Unicode is not mended, and HTML entities are not decoded; names of classes
have neither.
"""

from __future__ import annotations

import functools
import gzip
import pathlib
import unicodedata
from typing import Iterator, Sequence

import numpy as np

__all__ = ["tokenize"]

START, END = 49406, 49407
_MERGES = pathlib.Path(__file__).with_name("clip_merges.txt.gz")
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")  # of English words
_LAST = "</w>"  # marks the last piece of a word, in the merges too


def tokenize(texts: Sequence[str], longest: int = 77) -> np.ndarray:
    """Token numbers of texts, lower-cased.

    Args:
        texts: at least one.
        longest: tokens kept of a text, start and end included, >= 3; what is beyond is cut.
    Returns:
        (len(texts), L) int32, zeros behind the end; L is that of the longest text.
    """
    rows = []
    for text in texts:
        inner = [number for word in _words(text.lower()) for number in _numbers(word)]
        rows.append([START, *inner[:longest - 2], END])
    found = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for line, row in zip(found, rows):
        line[:len(row)] = row
    return found


def _words(text: str) -> Iterator[str]:
    """Runs of letters, single numerals, and runs of other characters that are no spaces."""
    at = 0
    while at < len(text):
        word = next((ending for ending in _ENDINGS if text.startswith(ending, at)), "")
        if not word:
            kind = _kind(text[at])
            end = next((i for i in range(at + 1, len(text)) if kind == "N" or _kind(text[i]) != kind), len(text))
            word = text[at:end]
        if not word.isspace():
            yield word
        at += len(word)


def _kind(letter: str) -> str:
    """"L" for letters, "N" for numerals, " " for spaces, "" for the rest."""
    kind = unicodedata.category(letter)[0]
    return kind if kind in "LN" else " " if letter.isspace() else ""


@functools.lru_cache(maxsize=None)
def _tables() -> tuple[dict[int, str], dict[str, int], dict[tuple[str, ...], int]]:
    """Letter of every byte, number of every piece, rank of every merge."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]  # these are written as letters from 256 on
    letters = {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}
    merges = [tuple(line.split()) for line in gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()]
    pieces = [*letters.values(), *(letter + _LAST for letter in letters.values()), *("".join(pair) for pair in merges)]
    return letters, {piece: i for i, piece in enumerate(pieces)}, {pair: i for i, pair in enumerate(merges)}


@functools.lru_cache(maxsize=4096)
def _numbers(word: str) -> tuple[int, ...]:
    """Token numbers of one word: its neighbours are joined, the earliest merge first, until none fits."""
    letters, numbers, ranks = _tables()
    pieces = [letters[byte] for byte in word.encode("utf-8")]
    pieces[-1] += _LAST
    while len(pieces) > 1:
        best = min(zip(pieces, pieces[1:]), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined, i = [], 0
        while i < len(pieces):
            fits = tuple(pieces[i:i + 2]) == best
            joined.append("".join(best) if fits else pieces[i])
            i += 1 + fits
        pieces = joined
    return tuple(numbers[piece] for piece in pieces)
