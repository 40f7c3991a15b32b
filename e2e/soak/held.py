"""What processes hold: memory of their own and open files, and what of it is a porter's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PORTER = "medley.engine.kv.porter"
# Files in the page cache are not counted: they are other processes' too, and seem to grow when those end.
_COUNTED = ("Pss_Anon:", "Pss_Shmem:")


@dataclass(frozen=True, slots=True)
class Held:
    """Of a process and all its children; memory that two share is counted once."""

    mib: float = 0.0
    files: int = 0
    porter_mib: float = 0.0  # of this, the porter's; of the largest, where there are several
    porter_rss_mib: float = 0.0  # resident, what it shares with the worker and with other programs included


def held(pid: int) -> Held:
    """Return what a process and its children hold."""
    mib, files, porter_mib, porter_rss_mib = 0.0, 0, 0.0, 0.0
    for each in family(pid):
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            own = counted_mib(Path(f"/proc/{each.pid}/smaps_rollup").read_text(encoding="ascii"))
            mib += own
            files += each.num_fds()
            if _PORTER in each.cmdline():
                porter_mib = max(porter_mib, own)
                porter_rss_mib = max(porter_rss_mib, each.memory_info().rss / 2**20)
    return Held(mib, files, porter_mib, porter_rss_mib)


def counted_mib(rollup: str) -> float:
    """Return the memory that a process has or shares with its family, of its `smaps_rollup`."""
    sizes = dict(line.split()[:2] for line in rollup.splitlines() if line.startswith(_COUNTED))
    return sum(int(size) for size in sizes.values()) / 1024


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its children, none if it is gone."""
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
