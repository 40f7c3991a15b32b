"""Durations as people write them on a command line. Pure."""

import re

from e2e.stage.processes import StageError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Return the seconds of `1500ms`, `30s`, `2m` or `1h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text.strip())
    if match is None:
        raise StageError(f"duration {text!r}: write a number and a unit (ms, s, m, h), such as 30s")
    return float(match[1]) * _UNITS[match[2]]
