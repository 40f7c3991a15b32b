"""What `make soak` has counted so far, in all its runs: read, not run, since a thousand interruptions take hours."""

from __future__ import annotations

from collections.abc import Iterator

from bench.rows import Row
from e2e.soak import ledger
from e2e.soak.engines import ROOT

WANTED = 1000
WANTED_KILLS = 100


def measure() -> Iterator[Row]:
    """Return the cumulative counts of the soak over real vLLM; of none, where it never ran."""
    found = ledger.load(ROOT / "build" / "soak.json", "vllm")
    command = "make soak"
    enough = found.interruptions >= WANTED
    yield Row("soak/interruptions", found.interruptions, "", f">= {WANTED}", enough, command=command)
    killed = found.sigkills >= WANTED_KILLS
    yield Row("soak/processes killed", found.sigkills, "", f">= {WANTED_KILLS}", killed, command=command)
    beside = f"of {found.streams} streams, {found.tokens} tokens"
    for what, value in (
        ("requests broken", found.broken),
        ("tokens lost", found.lost),
        ("tokens duplicated", found.duplicated),
        ("tokens differing", found.differing),
        ("blocks leaked", found.leaked_blocks),
        ("files leaked", found.leaked_files),
    ):
        # Nothing broken of nothing done proves nothing.
        yield Row(f"soak/{what}", value, "", "0", value == 0 and found.streams > 0, beside, command)
    yield Row(
        "soak/memory leaked", found.leaked_mib, "MiB", "0", found.leaked_mib == 0 and found.streams > 0, beside, command
    )
