"""What the plugin said in each of vLLM's processes: files in a folder. Called by supervisor.py.

A capability counts only if every process that loaded the plugin has it: half an engine cannot resume exactly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_PROCESSES: Final = 2  # vLLM has at least an API server and an engine core


def capabilities(folder: Path) -> tuple[str, ...]:
    """Return what all plugin reports in the folder agree on; empty before both API server and engine reported."""
    sets = []
    for path in sorted(folder.glob("*.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        sets.append(frozenset(str(name) for name in said["capabilities"]))
    return tuple(sorted(frozenset.intersection(*sets))) if len(sets) >= _PROCESSES else ()


def complaints(folder: Path) -> str:
    """Return why the plugin disabled something, for people; empty if it did not."""
    said = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return "; ".join(sorted({str(line) for report in said for line in report["disabled"]}))


def clear(folder: Path) -> None:
    """Forget the reports of an engine that ended."""
    for path in folder.glob("*.json"):
        path.unlink(missing_ok=True)
