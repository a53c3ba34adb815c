"""Is the difference between two groups of runs more than chance? Welch's t-test with the standard library alone."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Sequence

__all__ = ["WelchTest", "welch_test", "t_two_sided", "t_bound", "incomplete_beta"]


@dataclass(frozen=True)
class WelchTest:
    """The result of `welch_test`.

    Attributes:
        difference: mean of the second group minus mean of the first.
        low, high: the 95 % confidence interval of the difference.
        t: the difference in units of its standard error.
        degrees: degrees of freedom (Welch-Satterthwaite), above 0.
        p: two-sided, in 0-1.
    """

    difference: float
    low: float
    high: float
    t: float
    degrees: float
    p: float


def welch_test(first: Sequence[float], second: Sequence[float]) -> WelchTest | None:
    """Compare two means whose groups may differ in size and spread (Welch, Biometrika 1947).

    Returns:
        None where there is no spread to compare with: fewer than two values in a group, or none differ in either.
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = statistics.fmean(second) - statistics.fmean(first)
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (first, second)]
    error = sum(part for part, _ in parts)
    if error <= 0:
        return None
    degrees = error ** 2 / sum(part ** 2 / free for part, free in parts)
    half = t_bound(0.05, degrees) * math.sqrt(error)
    t = difference / math.sqrt(error)
    return WelchTest(difference, difference - half, difference + half, t, degrees, t_two_sided(t, degrees))


def t_two_sided(t: float, degrees: float) -> float:
    """Probability that Student's t with `degrees` > 0 degrees of freedom is at least |t| from 0."""
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def t_bound(p: float, degrees: float) -> float:
    """The t >= 0 whose two-sided probability is p, 0 < p < 1; by bisection to the last digits."""
    low, high = 0.0, 1.0
    while t_two_sided(high, degrees) > p:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_two_sided(middle, degrees) > p else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), a, b > 0, 0 <= x <= 1.

    The continued fraction of the NIST Digital Library of Mathematical Functions, 8.17.22, evaluated by Lentz's method;
    relative error below 1e-10 for the a and b of t-tests.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, that of the other tail does not
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    upper, lower, value = 1.0, 0.0, 1.0
    for i in range(1000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / ((1 + term * lower) or tiny)
        upper = (1 + term / upper) or tiny
        value *= upper * lower
        if i and abs(upper * lower - 1) < 1e-15:
            break
    return front * (value - 1) / a
