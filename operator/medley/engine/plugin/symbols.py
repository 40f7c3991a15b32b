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
    """A function, method or class, and the parameters it must begin with; or a value that must be there."""

    module: str
    name: str
    parameters: str = ""  # names in order, separated by spaces
    uses: str = ""  # names of attributes, globals and functions that its code must mention


def differences(symbols: Iterable[Symbol]) -> list[str]:
    """Return a line for every symbol that is gone, has another signature, or works with other names."""
    return [line for line in (_difference(symbol) for symbol in symbols) if line]


def _difference(symbol: Symbol) -> str:
    try:
        found: Any = reduce(getattr, symbol.name.split("."), import_module(symbol.module))
    except ImportError as error:
        return f"{symbol.module} cannot be imported ({error})"
    except AttributeError:
        return f"{symbol.module} has no {symbol.name}"
    if expected := tuple(symbol.parameters.split()):
        parameters = tuple(inspect.signature(found).parameters) if callable(found) else ()
        if parameters[: len(expected)] != expected:
            return f"{symbol.module}.{symbol.name} takes ({', '.join(parameters)}), not ({', '.join(expected)}, ...)"
    if wanted := set(symbol.uses.split()):
        mentioned = _names(inspect.unwrap(found.fget if isinstance(found, property) else found).__code__)
        if missing := sorted(wanted - mentioned):
            return f"{symbol.module}.{symbol.name} does not use {', '.join(missing)}"
    return ""


def _names(code: Any) -> set[str]:
    """Return the names that a function's code mentions, and those of functions within it."""
    inner = (_names(constant) for constant in code.co_consts if hasattr(constant, "co_names"))
    return set(code.co_names).union(*inner)
