"""Carries streams from a leaving replica to another: copies ahead while they flow, cuts them off, holds the pins.

`leaving` says who is to be carried, where to and when, again and again; here is one task per such stream. Its result is
a `Handover`, which `carrier` takes when the stream's attempt has ended. Whatever fails here costs a prefill and nothing
else: the attempt ends without a ticket, and the token log goes on elsewhere.

    export, keep_running -> a request of one token with the ticket on the target   (a copy; repeated when behind)
    export               -> the stream ends with `abort`, its ticket goes into the next call of its conversation
    renew until the target's first token, then release
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from medley.core.errors import EngineError
from medley.router.attempt import Attempt, Handover, History, Move, Replica
from medley.router.engine_client import EngineClient
from medley.router.fleet import Fleet
from medley.router.metrics import RouterMetrics
from medley.router.session import Cause
from medley.wire.generate import GenerateCall
from medley.wire.ticket import Ticket

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
# Copies out of one replica at once: one is pulled while the next waits for its target's step.
_COPIES_AT_ONCE = 2
_MOST_FAILED_COPIES = 2
# A stream is behind enough to be copied once more before its cut, in blocks.
_BEHIND_BLOCKS = 2
_LOOK_AGAIN_SECONDS = 0.1
_LOG_SECONDS = 2.0  # for tokens that the engine has made to arrive here
_ABORT_SECONDS = 3.0  # from the ticket to the end of the stream
_ARRIVAL_SECONDS = 120.0  # from the ticket to the target's first token


class Mover:
    """The streams on their way, and the pins they hold."""

    def __init__(
        self, fleet: Fleet, engines: EngineClient, metrics: RouterMetrics, *, clock: Callable[[], float]
    ) -> None:
        self._fleet, self._engines, self._metrics, self._clock = fleet, engines, metrics, clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        fleet.leaving.carry = self.carry

    def carry(self, attempt: Attempt) -> None:
        """See to it that this stream is carried as its `way` says. May be called any number of times."""
        if attempt.move is None and attempt.history is not None:
            attempt.move = Move()
            self._start(self._run(attempt, attempt.move, attempt.history))

    async def close(self) -> None:
        """Give up what is on its way; its pins run out by themselves."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, attempt: Attempt, move: Move, history: History) -> None:
        source, failed = attempt.replica, 0
        turn = self._turns.get(source.name)
        if turn is None:
            turn = self._turns[source.name] = asyncio.Semaphore(_COPIES_AT_ONCE)
        refreshed = False
        while attempt.open:
            way, now = attempt.way, self._clock()
            target = None if way is None else self._fleet.view.replicas.get(way.target)
            if way is None or target is None or not way.carried:
                await _within(_LOOK_AGAIN_SECONDS, move.ended)
                continue
            due = now >= way.cut_at
            worth_it = failed < _MOST_FAILED_COPIES and self._is_behind(move, history, target, source, due=due)
            if worth_it and not refreshed and (due or now >= way.copy_at):
                refreshed = due
                try:
                    async with turn, _until(move.ended):
                        await self._copy(attempt, move, history, target)
                except (EngineError, TimeoutError) as error:
                    if move.ended.is_set():  # there is nothing to carry any more
                        return
                    failed += 1
                    self._metrics.copied(done=False)
                    logger.info("copying a stream of %s to %s ahead: %s", source.name, target.name, error)
                continue
            if due:
                await self._cut(attempt, move, target)
                return
            await _within(min(way.cut_at - now, _LOOK_AGAIN_SECONDS), move.ended)

    def _is_behind(self, move: Move, history: History, target: Replica, source: Replica, *, due: bool) -> bool:
        """Whether a copy is worth while: the first one, or one more right before the cut."""
        if not move.copied.get(target.name):
            return True
        state = self._fleet.knowledge.states.get(source.name)
        block = 1 if state is None else max(state.block_size, 1)
        return due and history.length - move.copied[target.name] > _BEHIND_BLOCKS * block

    async def _copy(self, attempt: Attempt, move: Move, history: History, target: Replica) -> None:
        """Let the target compute one token after all that the source has: its prefix cache holds the rest then."""
        if not attempt.open:
            return
        source, choice = attempt.replica, history.choice
        begun = self._clock()
        ticket = await self._engines.export(source.url, choice.request_id, keep_running=True, lease_s=LEASE_SECONDS)
        if ticket is None:
            raise EngineError(f"exporting {choice.request_id} from {source.name}: it is not known there")
        async with self._pinned(source, ticket):
            if not ticket.valid_tokens:
                raise EngineError(f"exporting {choice.request_id} from {source.name}: nothing is computed yet")
            await _arrives(history, ticket.valid_tokens)
            name = f"{choice.request_id}-copy-{len(move.copied)}-{ticket.valid_tokens}"
            sampling = {"temperature": 0.0, "seed": 0, "max_tokens": 1, "min_tokens": 0}
            prefix = history.prefix(ticket.valid_tokens + 1)
            call = GenerateCall(name, prefix, sampling, choice.rendered.attachments, choice.adapter, ticket)
            async with asyncio.timeout(LEASE_SECONDS):
                await self._engines.run(target.url, call)
        self._metrics.copied(done=True)
        before = move.copied.get(target.name, 0)
        move.copied[target.name] = ticket.valid_tokens
        share = max(ticket.valid_tokens - before, 0) / ticket.valid_tokens
        self._fleet.knowledge.carried(source.name, int(ticket.kv_bytes * share), self._clock() - begun)

    async def _cut(self, attempt: Attempt, move: Move, target: Replica) -> None:
        """End the stream where it is, and keep what it has pinned until the target has it."""
        source, history = attempt.replica, attempt.history
        assert history is not None
        move.handed = asyncio.get_running_loop().create_future()
        ticket: Ticket | None = None
        arrived = asyncio.Event()
        try:
            ticket = await self._engines.export(
                source.url, history.choice.request_id, keep_running=False, lease_s=LEASE_SECONDS
            )
        except (EngineError, TimeoutError) as error:
            logger.info("exporting a stream of %s: %s; its tokens are computed again", source.name, error)
        finally:  # whatever happens here, the stream is waiting for it
            move.handed.set_result(Handover(target.name, ticket, arrived))
        if not await _within(_ABORT_SECONDS if ticket is not None else 0.0, move.ended):
            attempt.break_off(Cause.NOTICE)
        if ticket is not None:
            async with self._pinned(source, ticket):
                await _within(_ABORT_SECONDS, move.ended)  # it was broken off
                if move.claimed:
                    await _within(_ARRIVAL_SECONDS, arrived)

    @asynccontextmanager
    async def _pinned(self, source: Replica, ticket: Ticket) -> AsyncIterator[None]:
        """Renew a ticket's lease as long as the block runs, then let it go."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_SECONDS / 3)
                try:
                    await self._engines.renew(source.url, ticket.export_id, LEASE_SECONDS)
                except (EngineError, TimeoutError) as error:
                    logger.info("renewing an export of %s: %s", source.name, error)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            self._start(self._release(source, ticket))

    async def _release(self, source: Replica, ticket: Ticket) -> None:
        try:
            await self._engines.release(source.url, ticket.export_id)
        except (EngineError, TimeoutError) as error:
            # Its lease runs out.
            logger.info("releasing an export of %s: %s", source.name, error)


@asynccontextmanager
async def _until(event: asyncio.Event) -> AsyncIterator[None]:
    """End the block with a `TimeoutError` when an event comes."""

    async def end() -> None:
        await event.wait()
        scope.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(None) as scope:
        ending = asyncio.create_task(end())
        try:
            yield
        finally:
            ending.cancel()


async def _arrives(history: History, length: int) -> None:
    """Wait until the log holds as many tokens; `EngineError` if they do not come."""
    ends = asyncio.get_running_loop().time() + _LOG_SECONDS
    while history.length < length:
        if asyncio.get_running_loop().time() > ends:
            raise EngineError(f"{length} tokens were exported, and {history.length} came here")
        await asyncio.sleep(0.002)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event, at most so long; say whether it came."""
    if event.is_set():
        return True
    try:
        await asyncio.wait_for(event.wait(), max(seconds, 0.0))
    except TimeoutError:
        return False
    return True
