"""What engines' logs tell: blocks that were carried, or computed and why, and engines that ended by themselves."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from e2e.soak.ledger import Ledger

_CARRIED = re.compile(rb"medley: carried \S+: ")
_COMPUTED = re.compile(rb"medley: \S+ is computed, not carried: ([^\n]*)\n")
_DIED = re.compile(rb"medley\| Serving -> (?:Starting|Failed)([^\n]*)\n")
_NUMBER = re.compile(r"[0-9a-f]{16,}|[0-9]+")
CARRIED = "carried"


def loads(log: bytes) -> Counter[str]:
    """Count the loads that a log tells of; reasons that differ in a number are one."""
    found = Counter({CARRIED: len(_CARRIED.findall(log))})
    for reason in _COMPUTED.findall(log):
        found[f"computed: {_NUMBER.sub('#', reason.decode(errors='replace'))[:80]}"] += 1
    return +found


class Loads:
    """Reads on in every log of a folder."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger, self._folder = ledger, folder
        self._read: Counter[Path] = Counter()  # bytes

    def read(self) -> None:
        """Count what was written since."""
        for path in sorted(self._folder.glob("e*-*.log")):
            with path.open("rb") as log:
                log.seek(self._read[path])
                whole, _, _ = log.read().rpartition(b"\n")
            if whole:
                self._read[path] += len(whole) + 1
                lines = whole + b"\n"
                self._ledger.loads.update(loads(lines))
                for why in _DIED.findall(lines):
                    self._ledger.deaths += 1
                    self._ledger.failed(f"to {self._ledger.interruptions}: {path.stem} died:{why.decode()}")
