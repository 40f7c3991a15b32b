"""Tails of distributions, from their mean and variance. Called by `queueing`. Pure; standard library only."""

from __future__ import annotations

import math

_TERMS = 500
_PRECISION = 1e-12


def gamma_tail(mean: float, variance: float, above: float) -> float:
    """Return P(X > above) of the Gamma distribution with this mean and variance: 0 and up, skewed to the right.

    A variance of 0 is a constant.
    """
    if above < 0:
        return 1.0
    if mean <= 0 or variance <= 0:
        return 1.0 if mean > above else 0.0
    return upper_gamma(mean * mean / variance, above * mean / variance)


def upper_gamma(shape: float, x: float) -> float:
    """Return the regularised upper incomplete Gamma function Q(shape, x), by series or continued fraction.

    Abramowitz and Stegun 6.5.29 and 6.5.31. Shapes are at most some 10,000 here; far above that (next to constant),
    by Wilson and Hilferty's normal approximation.
    """
    if x <= 0:
        return 1.0
    if shape > _TERMS:
        third = (x / shape) ** (1 / 3)
        return 0.5 * math.erfc((third - (1 - 1 / (9 * shape))) * math.sqrt(9 * shape / 2))
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    return 1 - front * _series(shape, x) if x < shape + 1 else front * _fraction(shape, x)


def _series(shape: float, x: float) -> float:
    term = total = 1 / shape
    for n in range(1, 4 * _TERMS):
        term *= x / (shape + n)
        total += term
        if term < total * _PRECISION:
            break
    return total


def _fraction(shape: float, x: float) -> float:
    """Lentz's method."""
    tiny = 1e-300
    b = x + 1 - shape
    c, d = 1 / tiny, 1 / b
    value = d
    for n in range(1, 4 * _TERMS):
        a = -n * (n - shape)
        b += 2
        d = 1 / (a * d + b or tiny)
        c = b + a / c or tiny
        value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return value
