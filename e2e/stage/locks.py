"""Locks between processes, by name; used wherever two commands of the stage might work on one thing."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager

from e2e.stage import paths


@contextmanager
def locked(name: str) -> Generator[None, None, None]:
    """Wait for the lock, hold it for the block; the kernel frees it when its holder dies."""
    folder = paths.cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
