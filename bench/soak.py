"""What `make soak` has counted so far, in all its runs: read, not run, since a thousand interruptions take hours."""

from __future__ import annotations

from collections.abc import Iterator

from bench.rows import Row
from e2e.soak import ledger
from e2e.soak.engines import ROOT
from e2e.soak.ledger import COUNTERS, Ledger

WANTED = 1000
WANTED_KILLS = 100


def measure() -> Iterator[Row]:
    """Return the cumulative counts of the soak over real vLLM; of none, where it never ran."""
    yield from rows(ledger.load(ROOT / "build" / "soak.json", "vllm"))


def rows(found: Ledger) -> Iterator[Row]:
    """Return all counts of a ledger."""
    command = "make soak"
    enough = found.interruptions >= WANTED
    pace = f"{found.seconds / found.interruptions:.1f} s each" if found.interruptions else None
    yield Row("soak/interruptions", found.interruptions, "", f">= {WANTED}", enough, pace, command)
    killed = found.sigkills >= WANTED_KILLS
    yield Row("soak/processes killed", found.sigkills, "", f">= {WANTED_KILLS}", killed, command=command)
    beside = f"of {found.streams} streams ({found.slow_readers} read slowly), {found.tokens} tokens"
    for what, value, unit in (
        ("requests broken", found.broken, ""),
        ("tokens lost", found.lost, ""),
        ("tokens duplicated", found.duplicated, ""),
        ("tokens differing", found.differing, ""),
        ("engines that died by themselves", found.deaths, ""),
        ("blocks leaked", found.leaked_blocks, ""),
        ("files leaked", found.leaked_files, ""),
        ("memory leaked", found.leaked_mib, "MiB"),
    ):
        # Nothing broken of nothing done proves nothing.
        yield Row(f"soak/{what}", value, unit, "0", value == 0 and found.streams > 0, beside, command)
    yield Row("soak/looks that could have shown a leak", found.judged, "", ">= 1", found.judged > 0, command=command)
    resident = f"{found.porter_rss_mib:g} MiB resident"
    yield Row("soak/most memory of a porter", found.porter_mib, "MiB", peer=resident, command=command)
    for name in COUNTERS:
        for what, count in sorted(getattr(found, name).items()):
            yield Row(f"soak/{name}: {what}", count, "", command=command)
