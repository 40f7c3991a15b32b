"""Durations, percentages, money and memory as people write them in manifests; one canonical form each."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

from medley.core.errors import InvalidInputError

# One number and one unit: "40ms", "2s", "10m", "1h"; "850us" where milliseconds are too coarse.
# No compound forms ("1m30s"), so that a length has few spellings.
DURATION_PATTERN = r"^[1-9][0-9]*(us|ms|s|m|h)$"
PERCENT_PATTERN = r"^(100|[1-9]?[0-9])%$"
MONEY_PATTERN = r"^(0|[1-9][0-9]*)(\.[0-9]{1,6})?$"
MEMORY_PATTERN = r"^[1-9][0-9]*(Mi|Gi|Ti)$"

_ALL_DIGITS = 999.5  # three digits would round it to 1e+03
# Ten seconds or more for one token, or an hour until the first: nobody promises that, a unit was mistaken.
LONG_TPOT_PATTERN = r"^([0-9]+[mh]|[0-9]{2,}s|[0-9]{5,}ms|[0-9]{8,}us)$"
LONG_TTFT_PATTERN = r"^([0-9]+h|[0-9]{2,}m|[0-9]{4,}s|[0-9]{7,}ms|[0-9]{10,}us)$"

_MICROSECONDS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
_BYTES = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def duration(text: str, *, field: str) -> timedelta:
    """Parse "850us", "40ms", "2s", "10m" or "1h"."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise InvalidInputError(field, f"expected a duration such as 40ms, 2s, 10m or 1h, got {text!r}")
    number, unit = re.fullmatch(r"([0-9]+)([a-z]+)", text).groups()  # type: ignore[union-attr]  # the pattern just matched
    return timedelta(microseconds=int(number) * _MICROSECONDS[unit])


def format_duration(value: timedelta) -> str:
    """Return the canonical form: the largest unit that leaves a whole number."""
    microseconds = round(value / timedelta(microseconds=1))
    for unit in ("h", "m", "s", "ms"):
        if microseconds and microseconds % _MICROSECONDS[unit] == 0:
            return f"{microseconds // _MICROSECONDS[unit]}{unit}"
    return f"{microseconds}us" if microseconds else "0ms"


def percent(text: str, *, field: str) -> float:
    """Parse "20%" to 0.2."""
    if not re.fullmatch(PERCENT_PATTERN, text):
        raise InvalidInputError(field, f"expected a whole percentage from 0% to 100%, got {text!r}")
    return int(text[:-1]) / 100


def usd(text: str, *, field: str) -> Decimal:
    """Parse an amount of US dollars such as "0.36"."""
    if not re.fullmatch(MONEY_PATTERN, text):
        raise InvalidInputError(field, f'expected US dollars as a string such as "0.36", got {text!r}')
    return Decimal(text)


def figure(value: float) -> str:
    """Return a quantity for people: three digits, all of those before the point, never 8e+03."""
    if abs(value) >= _ALL_DIGITS:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def memory_bytes(text: str, *, field: str) -> int:
    """Parse "24Gi" to bytes."""
    if not re.fullmatch(MEMORY_PATTERN, text):
        raise InvalidInputError(field, f"expected a memory size such as 24Gi, got {text!r}")
    return int(text[:-2]) * _BYTES[text[-2:]]
