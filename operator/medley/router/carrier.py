"""Drives a conversation over real engines: places, sends, reads, and goes on elsewhere when an attempt breaks.

Called by `server`, one task per choice. What is decided is decided in `session`; here are sockets and time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from medley.core.migrations import How
from medley.core.workload import Bucket
from medley.router.admission import Admission
from medley.router.attempt import Attempt, Handover, History
from medley.router.engine_client import EngineClient
from medley.router.fleet import Fleet, Wanted
from medley.router.metrics import RouterMetrics
from medley.router.prefixes import Keys
from medley.router.session import (
    Abandon,
    Broken,
    Cause,
    Command,
    Deliver,
    Event,
    Finish,
    Issue,
    Placed,
    Seek,
)
from medley.wire.generate import FINISHED_BY_ABORT, EngineFault, TokenEvent

logger = logging.getLogger(__name__)

# Silence that turned out to be slowness must not repeat for ever: each makes the request twice as patient.
_MOST_PATIENCE = 64.0
_OUR_FAULT = 500  # statuses from here on; below, the request itself was wrong
_DELIVERED = (Deliver, Finish)  # a tuple: a union would be made anew for every token


@dataclass(slots=True)
class Carriage:
    """One choice on its way."""

    bucket: Bucket | None
    history: History  # its committed tokens are the conversation's own
    arrived: float  # event loop time, like all times here
    deadline: float
    deliver: Callable[[Deliver | Finish], None]  # does not block: the client's pace is the server's business
    delivered: int = 0
    last_delivery: float | None = None
    broken_by: Cause | None = None  # of the attempt before, until a token follows
    avoid: str | None = None  # the replica that broke last
    left: str | None = None  # the replica that it left, until a token follows
    patience: float = 1.0
    keys: Keys = ()  # of its prompt, in the prefix index
    per_minute: float = 0.0  # requests of its class
    handover: Handover | None = None  # of the attempt before, until its successor has made a token

    @property
    def remaining(self) -> int:
        """Tokens that it may still make."""
        return self.history.choice.rendered.max_tokens - self.delivered

    def arrive(self) -> None:
        """Let the pins of the hand-over go."""
        if self.handover is not None:
            self.handover.arrived.set()
            self.handover = None


class Carrier:
    """Carries conversations over the fleet."""

    def __init__(
        self,
        fleet: Fleet,
        admission: Admission,
        engines: EngineClient,
        metrics: RouterMetrics,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._fleet, self._admission, self._engines, self._metrics = fleet, admission, engines, metrics
        self._clock, self._wall_clock = clock, wall_clock
        fleet.begun = metrics.left.begun

    async def carry(self, conversation: Generator[Command, Event, None], carriage: Carriage) -> Finish | Abandon:
        """Run a conversation to its end; a `Finish` was delivered. Cancelling aborts the engine's work."""
        how: How | None = None
        try:
            end = await self._carried(conversation, carriage)
            if isinstance(end, Finish):
                how = How.REFILLED if carriage.broken_by is Cause.NOTICE else How.RESUMED
            elif end.fault.code >= _OUR_FAULT:
                how = How.LOST
        finally:
            conversation.close()
            carriage.arrive()
            self._note_arrival(carriage, how)
        return end

    async def _carried(self, conversation: Generator[Command, Event, None], carriage: Carriage) -> Finish | Abandon:
        try:
            async with asyncio.timeout_at(carriage.deadline) as scope:
                command = next(conversation)
                while isinstance(command, Seek):
                    attempt = await self._place(carriage, command)
                    command = await self._attempt(conversation, carriage, attempt)
        except TimeoutError:
            if not scope.expired():
                raise
            return Abandon(EngineFault(504, "the request's deadline passed before it was complete", None))
        assert isinstance(command, Finish | Abandon)
        return command

    async def _place(self, carriage: Carriage, seek: Seek) -> Attempt:
        """Take the place that was chosen for a stream that moves; otherwise wait for one."""
        wanted = Wanted(
            carriage.bucket,
            carriage.remaining,
            carriage.patience,
            carriage.avoid,
            carriage.keys,
            carriage.per_minute,
            carriage.history.choice.adapter,
        )
        attempt = None
        if carriage.handover is not None:
            attempt = self._fleet.open_at(carriage.handover.target, wanted)
        if attempt is None:
            attempt = await self._admission.place(wanted, resuming=seek.resuming)
        attempt.history = carriage.history
        attempt.computes = attempt.computes and not seek.resuming  # much of it may have been copied there
        attempt.ticket = None if carriage.handover is None else carriage.handover.ticket
        return attempt

    async def _attempt(
        self, conversation: Generator[Command, Event, None], carriage: Carriage, attempt: Attempt
    ) -> Command:
        """Run one attempt and return what the conversation wants after it."""
        cause: Cause | None = None
        try:
            resumes_output = self._fleet.knowledge.takes_outputs(attempt.replica)
            command = conversation.send(Placed(resumes_output, attempt.ticket))
            assert isinstance(command, Issue)
            attempt.ticket = command.call.ticket  # it may be of no use
            self._note_issue(carriage, attempt, command)
            try:
                async with asyncio.timeout(None) as attempt.scope:
                    if attempt.cause is not None:  # broken off between its placement and now
                        attempt.scope.reschedule(self._clock())
                    command = await self._read(conversation, carriage, attempt, command)
            except TimeoutError:
                if attempt.cause is None:
                    raise  # the deadline of the request
                command = conversation.send(Broken(attempt.cause, accepted=True))
            if isinstance(command, Seek):
                cause = command.cause
                assert cause is not None
                self._note_break(carriage, attempt, cause)
            elif isinstance(command, Finish):
                self._note_finish(carriage, attempt)
        finally:
            self._fleet.close(attempt, cause)
            carriage.arrive()  # if it has not: this attempt broke before its first token
        if isinstance(command, Seek):
            await self._take_over(carriage, attempt)
        return command

    async def _take_over(self, carriage: Carriage, attempt: Attempt) -> None:
        """Learn where a stream goes on that left its replica on purpose."""
        move = attempt.move
        if move is not None and move.handed is not None:
            move.claimed = True
            try:
                carriage.handover = await move.handed
            except asyncio.CancelledError:
                move.claimed = False
                if move.handed.done() and not move.handed.cancelled():
                    move.handed.result().arrived.set()
                raise
        elif attempt.cause is Cause.NOTICE and attempt.way is not None:
            carriage.handover = Handover(attempt.way.target, None, asyncio.Event())

    async def _read(
        self, conversation: Generator[Command, Event, None], carriage: Carriage, attempt: Attempt, issue: Issue
    ) -> Command:
        """Feed the engine's events to the conversation until it wants something else than to deliver."""
        command: Command = issue

        def take(events: Sequence[TokenEvent | EngineFault | Broken]) -> bool:
            nonlocal command
            for event in _unmerged(events) if attempt.cut else events:
                command = conversation.send(event)
                if isinstance(command, _DELIVERED):
                    carriage.deliver(command)  # before anything else
                if isinstance(event, TokenEvent) and event.token_ids:
                    self._note_tokens(attempt, len(event.token_ids))
                if isinstance(command, _DELIVERED):
                    self._note_delivery(carriage, attempt, len(command.token_ids))
                if not isinstance(command, Deliver):
                    return True
            return False

        await self._engines.generate(attempt.replica.url, issue.call, take)
        assert not isinstance(command, Issue | Deliver)  # the last it gives is a finish, a fault or a break
        return command

    def _note_issue(self, carriage: Carriage, attempt: Attempt, issue: Issue) -> None:
        self._metrics.issued(attempt.replica.name, self._wall_clock())
        if carriage.broken_by is not None:
            self._metrics.resumed(carriage.broken_by, issue.mode)

    def _note_break(self, carriage: Carriage, attempt: Attempt, cause: Cause) -> None:
        self._metrics.broken.labels(cause.value).inc()
        carriage.broken_by = cause
        carriage.avoid = attempt.replica.name
        if carriage.left is None and cause is not Cause.UNREACHABLE:  # there it was never
            carriage.left = attempt.replica.name
            self._metrics.left.departed(carriage.left)
        if cause is Cause.SILENCE:
            carriage.patience = min(carriage.patience * 2, _MOST_PATIENCE)

    def _note_finish(self, carriage: Carriage, attempt: Attempt) -> None:
        name = attempt.replica.name
        if name in self._fleet.leaving:
            self._metrics.departed("finished")
            self._metrics.left.count(name, How.FINISHED)
        else:  # the next turn of a conversation begins with this one
            self._fleet.prefixes.add(name, carriage.history.keys())

    def _note_resumption(self, carriage: Carriage, attempt: Attempt) -> None:
        how = How.RESUMED
        if carriage.broken_by is Cause.NOTICE:
            how = How.REFILLED if attempt.ticket is None else How.CARRIED
            self._metrics.departed(how.value)
        self._note_arrival(carriage, how)

    def _note_arrival(self, carriage: Carriage, how: How | None) -> None:
        if carriage.left is not None:
            self._metrics.left.arrived(carriage.left, how)
            carriage.left = None

    def _note_tokens(self, attempt: Attempt, tokens: int) -> None:
        first = attempt.first_token is None
        self._fleet.received(attempt, tokens)
        if first:
            self._fleet.made_token(attempt.replica)
            self._fleet.knowledge.prefilled(attempt)

    def _note_pause(self, carriage: Carriage, attempt: Attempt, seconds: float) -> None:
        if carriage.broken_by is not Cause.NOTICE:
            kind = "broken"
        else:
            kind = "refilled" if attempt.ticket is None else "carried"
        self._metrics.paused(kind, seconds)
        name, replica = carriage.history.choice.request_id, attempt.replica.name
        logger.info("%s went on at %s after %.1f ms: %s", name, replica, seconds * 1000, kind)

    def _note_delivery(self, carriage: Carriage, attempt: Attempt, tokens: int) -> None:
        if not tokens:
            return
        now = self._clock()
        if carriage.last_delivery is None:
            self._metrics.ttft.observe(now - carriage.arrived)
        else:
            gap = now - carriage.last_delivery
            self._metrics.deliveries.gap(gap)
            if carriage.broken_by is not None:
                self._note_pause(carriage, attempt, gap)
        if carriage.broken_by is not None:
            self._note_resumption(carriage, attempt)
        carriage.broken_by = None
        carriage.arrive()
        carriage.last_delivery = now
        carriage.delivered += tokens
        self._metrics.deliveries.tokens += tokens


def _unmerged(events: Sequence[TokenEvent | EngineFault | Broken]) -> Iterator[TokenEvent | EngineFault | Broken]:
    """Tell an end that was asked for from others: its last tokens count, and it is no fault of the engine's."""
    for event in events:
        if isinstance(event, TokenEvent) and event.finish_reason == FINISHED_BY_ABORT:
            if event.token_ids:
                yield event._replace(finish_reason=None)
            yield Broken(Cause.NOTICE, accepted=True)
        else:
            yield event
