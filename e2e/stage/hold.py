"""One user at a time: while a demo or a test run holds the stage, `down` by anybody else says no.

Used by `prepare` (which holds) and `cluster.down` (which asks). The kernel lifts the lock when its holder ends.
"""

import fcntl
import os
from pathlib import Path
from typing import IO

from e2e.stage import paths
from e2e.stage.addresses import TAG
from e2e.stage.processes import StageError

_held: list[IO[str]] = []


def _file() -> Path:
    return paths.cache() / "locks" / f"stage{TAG}-in-use"


def take(who: str) -> None:
    """Hold the stage for this process until it ends or calls `give_back`; raise StageError if somebody else does."""
    if _held:
        return
    _file().parent.mkdir(parents=True, exist_ok=True)
    lock = _file().open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StageError(f"the stage is in use by {_file().read_text()}: wait for it, or end it") from None
    lock.truncate(0)
    lock.write(f"{who} (pid {os.getpid()})")
    lock.flush()
    _held.append(lock)


def give_back() -> None:
    """Let others have the stage."""
    while _held:
        _held.pop().close()
