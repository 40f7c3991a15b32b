"""Who may go in: a bounded queue before the replicas' room, and how long to wait when it is full.

The server asks `refusal` once per request; `carrier` waits in `place` for every attempt. Streams that were already
accepted go before new ones and are never refused: the bound is on new requests alone.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from medley.router.attempt import Attempt, Replica
from medley.router.fleet import Fleet, Wanted

_RATE_WINDOW_SECONDS = 30.0
_LONGEST_RETRY_SECONDS = 60


@dataclass(slots=True, eq=False)
class _Waiting:
    wanted: Wanted
    turn: asyncio.Future[Attempt]


class Admission:
    """Requests that wait for room, in order."""

    def __init__(self, fleet: Fleet, queue_limit: Callable[[], int], *, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._queue_limit = queue_limit
        self._clock = clock
        self._resuming: deque[_Waiting] = deque()
        self._new: deque[_Waiting] = deque()
        self._admitted: deque[float] = deque()  # when new requests got a place
        fleet.changed = self.serve

    @property
    def waiting(self) -> int:
        """New choices that wait for a replica."""
        return len(self._new)

    def refusal(self, choices: int) -> int | None:
        """Return None if a request of so many choices may wait, else after how many seconds to try again.

        With room there is no need to wait, however short the queue.
        """
        if len(self._new) + choices <= self._queue_limit() or self._has_room(choices):
            return None
        self._forget()
        rate = len(self._admitted) / _RATE_WINDOW_SECONDS
        seconds = len(self._new) / rate if rate > 0 else _LONGEST_RETRY_SECONDS
        return min(max(math.ceil(seconds), 1), _LONGEST_RETRY_SECONDS)

    async def place(self, wanted: Wanted, *, resuming: bool) -> Attempt:
        """Wait for a replica with room and count an attempt there. Cancelling leaves nothing behind."""
        if not self._resuming and not self._new and (replica := self._fleet.place(wanted)) is not None:
            return self._admit(wanted, replica, resuming=resuming)  # as nearly all
        turn: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(wanted, turn)
        queue = self._resuming if resuming else self._new
        queue.append(waiting)
        self.serve()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._fleet.close(turn.result(), None)
            elif waiting in queue:
                queue.remove(waiting)
            raise

    def serve(self) -> None:
        """Give places to those who wait, as far as there is room."""
        for queue in (self._resuming, self._new):
            if not queue:
                continue
            still: list[_Waiting] = []
            while queue:
                waiting = queue.popleft()
                if waiting.turn.done():
                    continue
                replica = self._fleet.place(waiting.wanted)
                if replica is None:
                    still.append(waiting)
                    if not any(each.has_room for each in self._fleet.candidates()):
                        break  # for nobody
                    continue
                waiting.turn.set_result(self._admit(waiting.wanted, replica, resuming=queue is self._resuming))
            queue.extendleft(reversed(still))
        self._forget()

    def _admit(self, wanted: Wanted, replica: Replica, *, resuming: bool) -> Attempt:
        if not resuming:
            self._admitted.append(self._clock())
            self._forget()
        return self._fleet.open(replica, wanted)

    def _has_room(self, choices: int) -> bool:
        free = sum(max(each.max_running - each.running, 0) for each in self._fleet.candidates())
        return not self._new and not self._resuming and free >= choices

    def _forget(self) -> None:
        horizon = self._clock() - _RATE_WINDOW_SECONDS
        while self._admitted and self._admitted[0] < horizon:
            self._admitted.popleft()
