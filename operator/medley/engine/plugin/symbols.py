"""Whether the parts of vLLM that a patch relies on are as they were. Called by the plugin before it patches."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function, method or class, and the parameters it must begin with."""

    module: str
    name: str
    parameters: str  # names in order, separated by spaces


def differences(symbols: Iterable[Symbol]) -> list[str]:
    """Return a line for every symbol that is gone or has another signature."""
    return [line for line in (_difference(symbol) for symbol in symbols) if line]


def _difference(symbol: Symbol) -> str:
    try:
        found: Any = reduce(getattr, symbol.name.split("."), import_module(symbol.module))
    except ImportError as error:
        return f"{symbol.module} cannot be imported ({error})"
    except AttributeError:
        return f"{symbol.module} has no {symbol.name}"
    parameters, expected = tuple(inspect.signature(found).parameters), tuple(symbol.parameters.split())
    if parameters[: len(expected)] != expected:
        return f"{symbol.module}.{symbol.name} takes ({', '.join(parameters)}), not ({', '.join(expected)}, ...)"
    return ""
