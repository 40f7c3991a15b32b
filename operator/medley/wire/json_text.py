"""JSON at a third of the standard library's cost: msgspec reads and writes it, what that refuses is judged as before.

Used where each request and each chunk pass. msgspec refuses some of what Python takes: lone surrogates, numbers beyond
a double, NaN, encodings other than UTF-8. Whoever sends such things gets the standard library's verdict.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()
_SORTED_ENCODER = msgspec.json.Encoder(order="sorted")

# What msgspec raises for text that it does not take.
REFUSED = (msgspec.MsgspecError, UnicodeError, RecursionError)


def read_json(raw: bytes, otherwise: Callable[[bytes], Any] = json.loads) -> Any:
    """Return the value of a JSON text; `otherwise` reads it if msgspec does not, and its errors are the caller's."""
    try:
        return _DECODER.decode(raw)
    except REFUSED:
        return otherwise(raw)


def write_json(value: Any) -> bytes:
    """Return the JSON text of plain values, without spaces."""
    try:
        return _ENCODER.encode(value)
    except REFUSED:  # a lone surrogate has no UTF-8
        return json.dumps(value, separators=(",", ":")).encode()


def canonical(value: Any) -> bytes:
    """Return a text that is the same for equal values."""
    try:
        return _SORTED_ENCODER.encode(value)
    except REFUSED:
        return json.dumps(value, sort_keys=True).encode()
