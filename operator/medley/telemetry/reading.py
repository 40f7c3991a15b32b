"""What reading a router's metrics may raise, whatever they are read for: `counts`, `departures`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from medley.core.errors import EngineError


@contextmanager
def reading() -> Iterator[None]:
    """Raise EngineError for what is no exposition, or one with other labels."""
    try:
        yield
    except (ValueError, KeyError) as error:
        raise EngineError(f"reading a router's metrics: {type(error).__name__}: {error}") from error


def missing(metric: str) -> EngineError:
    """Return the error of an exposition without a metric that every router of this version has."""
    return EngineError(f"reading a router's metrics: no {metric}; another version?")
