"""What vLLM said last, in its own words, shortened for a condition's message. Called by process.py; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

# "(EngineCore pid=31) ERROR 11-21 11:40:01 [core.py:1200] ValueError: ..." -> "ValueError: ..."
_PROCESS: Final = re.compile(r"^\((?:\w+ ?)+pid=\d+\) ?")
_LEVEL: Final = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^]]+\] )?")
_ERROR: Final = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Failure)(?:: .*|$)")
_USAGE: Final = re.compile(r"^\S+: error: .+")
# These only say that another process said why.
_HEARSAY: Final = ("Engine core initialization failed", "Failed core proc", "EngineDeadError", "EngineCore encountered")
_LIMIT: Final = 600  # characters
_TAIL: Final = 3  # lines, when no line looks like an error


def last_words(lines: Sequence[str]) -> str:
    """Return the error that made vLLM end: its last error line that is not hearsay, else its last lines."""
    bare = [line for line in (bare_line(line) for line in lines) if line]
    errors = [
        # pydantic says what is wrong in the line after.
        f"{line} {' '.join(bare[at + 1 : at + 2])}".strip() if "validation error" in line else line
        for at, line in enumerate(bare)
        if _ERROR.match(line) or _USAGE.match(line)
    ]
    told = [line for line in errors if not any(phrase in line for phrase in _HEARSAY)]
    words = (told or errors or [" / ".join(bare[-_TAIL:])])[-1]
    return words if len(words) <= _LIMIT else f"{words[: _LIMIT - 1]}…"


def bare_line(line: str) -> str:
    """Return a log line without vLLM's prefixes of process, level, time and place."""
    return _LEVEL.sub("", _PROCESS.sub("", line.strip())).strip()
