"""A queue of keys: each is in it once, is worked on by one worker at a time, and comes back later if its pass fails.

A key that is worked on more than MOST_PASSES times in WINDOW_SECONDS waits: if two parties undo each other's work, the
API server must not suffer for it.

Watches and timers add keys, `reconciling` takes them. It lives on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_SECONDS = 1.0
LAST_BACKOFF_SECONDS = 30.0
MOST_PASSES = 30
WINDOW_SECONDS = 10.0


class WorkQueue(Generic[K]):
    """Keys that are due now or later."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}  # by the loop's clock
        self._active: set[K] = set()
        self._failures: dict[K, int] = {}
        self._begun: dict[K, deque[float]] = {}  # when the last passes over a key began
        self._changed = asyncio.Event()

    def add(self, key: K, delay: float = 0.0) -> None:
        """Have the key worked on after `delay` seconds, or earlier if it is due earlier already."""
        due = asyncio.get_running_loop().time() + delay
        begun = self._begun.get(key, ())
        if len(begun) == MOST_PASSES:
            due = max(due, begun[0] + WINDOW_SECONDS)
        self._due[key] = min(due, self._due.get(key, due))
        self._changed.set()

    def forget(self, key: K) -> None:
        """Drop a key that has nothing to do any more."""
        self._due.pop(key, None)
        self._failures.pop(key, None)
        self._begun.pop(key, None)

    async def run(self, work: Callable[[K], Coroutine[Any, Any, float | None]], workers: int) -> None:
        """Work until cancelled. `work` returns the seconds after which the key is due again, None for never.

        A pass that raises is repeated after 1, 2, 4 ... 30 s; `work` has logged why.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(work))

    async def _worker(self, work: Callable[[K], Coroutine[Any, Any, float | None]]) -> None:
        while True:
            key = await self._taken()
            try:
                again = await work(key)
            except Exception:  # noqa: BLE001  # a bug in one pass must not end the operator; `work` logged it
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                again = min(FIRST_BACKOFF_SECONDS * 2 ** (failures - 1), LAST_BACKOFF_SECONDS)
            else:
                self._failures.pop(key, None)
            finally:
                self._active.discard(key)
                self._changed.set()
            if again is not None:
                self.add(key, again)
            elif key not in self._due:
                self._begun.pop(key, None)

    async def _taken(self) -> K:
        clock = asyncio.get_running_loop().time
        while True:
            waiting = [(due, position, key) for position, (key, due) in enumerate(self._due.items())]
            due, _, key = min(
                ((due, position, key) for due, position, key in waiting if key not in self._active),
                default=(None, 0, None),
                key=lambda each: each[:2],
            )
            if due is not None and key is not None and due <= clock():
                del self._due[key]
                self._active.add(key)
                self._begun.setdefault(key, deque(maxlen=MOST_PASSES)).append(clock())
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(None if due is None else due - clock()):
                    await self._changed.wait()
            except TimeoutError:
                pass
