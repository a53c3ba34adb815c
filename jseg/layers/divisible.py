"""Widths that are multiples of a number."""

from __future__ import annotations

__all__ = ["make_divisible"]


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value` that is at least `divisor` and not below 0.9 `value`."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor
