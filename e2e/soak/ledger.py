"""What the soak counted, over all its runs; read by `make bench`. Written after every interruption, whole or not."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

MOST_FAILURES = 50  # kept in words; all are counted
COUNTERS = ("notices", "ends", "faults", "departures", "resumes", "loads")


@dataclass(slots=True)
class Growth:
    """What one process held when it was quiet for the second time (the first, if there was no other), and last."""

    first_mib: float
    last_mib: float
    first_files: int
    last_files: int


@dataclass(slots=True)
class Ledger:
    """Cumulative counts of one kind of engine."""

    interruptions: int = 0
    seconds: float = 0.0  # that they took, quiet times and starts between them included
    notices: Counter[str] = field(default_factory=Counter)  # seconds of notice -> how often
    ends: Counter[str] = field(default_factory=Counter)  # cut, kill, target-kill
    faults: Counter[str] = field(default_factory=Counter)  # what else went wrong meanwhile
    sigkills: int = 0
    streams: int = 0  # that ended
    slow_readers: int = 0  # of these
    tokens: int = 0
    broken: int = 0  # streams with an error, or without an end
    lost: int = 0  # tokens
    duplicated: int = 0
    differing: int = 0
    departures: Counter[str] = field(default_factory=Counter)  # finished, carried, refilled
    resumes: Counter[str] = field(default_factory=Counter)  # by cause
    loads: Counter[str] = field(default_factory=Counter)  # of blocks, by engines: carried, or why they were computed
    deaths: int = 0  # of engines that nobody killed
    leaked_blocks: int = 0
    leaked_files: int = 0
    leaked_mib: float = 0.0
    judged: int = 0  # looks at engines that could have shown a leak: at least the third of that process
    porter_mib: float = 0.0  # the most that one held of its own, when all was quiet
    porter_rss_mib: float = 0.0  # the most that was resident of one
    router: list[Growth] = field(default_factory=list)  # one of each run
    failures: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing at all went wrong."""
        wrong = (self.broken, self.lost, self.duplicated, self.differing)
        return not any((*wrong, self.deaths, self.leaked_blocks, self.leaked_files, self.leaked_mib))

    def failed(self, words: str) -> None:
        """Note a failure for people."""
        if len(self.failures) < MOST_FAILURES:
            self.failures.append(words)


@dataclass(frozen=True, slots=True)
class Difference:
    """How an answer differs from the uninterrupted one, in tokens."""

    lost: int = 0
    duplicated: int = 0
    differing: int = 0


def difference(got: list[str], wanted: list[str]) -> Difference:
    """Compare an answer with its reference, token by token, by the shortest way from one to the other.

    The shared beginning and end are set aside; of what lies between, tokens that came too many are duplicated, tokens
    that are missing are lost, the rest differ.
    """
    start = 0
    while start < min(len(got), len(wanted)) and got[start] == wanted[start]:
        start += 1
    end = 0
    while end < min(len(got), len(wanted)) - start and got[-1 - end] == wanted[-1 - end]:
        end += 1
    came, due = len(got) - start - end, len(wanted) - start - end
    return Difference(max(due - came, 0), max(came - due, 0), min(came, due))


def load(path: Path, kind: str) -> Ledger:
    """Return the counts so far."""
    if not path.exists():
        return Ledger()
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get(kind, {})
    for name in COUNTERS:
        kept[name] = Counter(kept.get(name, {}))
    kept["router"] = [Growth(**each) for each in kept.get("router", ())]
    return Ledger(**kept)


def save(path: Path, kind: str, ledger: Ledger) -> None:
    """Write the counts of one kind of engine beside those of others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({**everything, kind: _plain(ledger)}, indent=1), encoding="utf-8")
    draft.replace(path)


def _plain(ledger: Ledger) -> dict[str, Any]:
    plain = {each.name: getattr(ledger, each.name) for each in fields(ledger)}
    return plain | {"router": [asdict(each) for each in ledger.router]}
