"""PID 1's duty: take in the orphans and bury them. Called by supervisor.py.

vLLM's grandchildren become ours when their parents die. As zombies they would fill the pid table and keep their
process group from ever being empty.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Container
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, also where it is not PID 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def reap(ours: Container[int]) -> int:
    """Bury zombies that nobody else waits for, return how many; `ours` are waited for by their owners."""
    buried = 0
    while True:
        try:
            # A look first: waiting for any child would take an exit status away from its owner.
            zombie = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return buried
        if zombie is None or zombie.si_pid in ours:
            return buried  # ours is polled several times a second, then the others have their turn
        os.waitpid(zombie.si_pid, 0)
        buried += 1
