"""One call to one replica while it runs, and what is known of the stream that it carries.

Opened by `fleet`, fed by `carrier`, ended early by whoever sees that it should end: `fleet`, `leaving`, `mover`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from medley.planning.carrying import Stream
from medley.router.prefixes import Keys, keys_of
from medley.router.session import Cause, Choice, counts_outputs
from medley.wire.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine that this router may use."""

    name: str
    url: str  # of vLLM's API
    shape: str = ""
    max_running: int = 64
    ready: bool = True
    leaves_at: datetime | None = None  # None: no notice
    silent: bool = False  # its node is NotReady: gone, or only not heard by the API server
    resumes_output: bool = False  # Capability.RESUME_EXACT


@dataclass(slots=True)
class History:
    """The token log of one choice: the prompt, and what was committed so far."""

    choice: Choice
    committed: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.choice.rendered.token_ids) + len(self.committed)

    def keys(self) -> Keys:
        """Return where its tokens are in the prefix index; nowhere if its KV depends on more than tokens and names."""
        rendered = self.choice.rendered
        if rendered.attachments.get("features") is not None:
            return ()
        salt = str(rendered.attachments.get("cache_salt") or "")
        return keys_of(self.prefix(self.length), (self.choice.adapter or "", salt))

    def prefix(self, length: int) -> tuple[int, ...]:
        """Return the first tokens of prompt and output."""
        prompt = self.choice.rendered.token_ids
        return (*prompt[:length], *self.committed[: max(length - len(prompt), 0)])


@dataclass(frozen=True, slots=True)
class Handover:
    """Where a stream goes on that was cut off on purpose. `arrived` lets its pins go."""

    target: str
    ticket: Ticket | None  # None: it is computed again
    arrived: asyncio.Event


class Way(NamedTuple):
    """How a stream is to leave its replica; times of the event loop."""

    target: str
    carried: bool
    copy_at: float
    cut_at: float


@dataclass(slots=True, eq=False)
class Move:
    """One stream on its way to another replica."""

    copied: dict[str, int] = field(default_factory=dict)  # tokens that targets have, by target
    handed: asyncio.Future[Handover] | None = None  # there from the cut on
    claimed: bool = False  # the stream goes on with it; not so if it ended by itself, or its client left
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # the attempt is over


@dataclass(slots=True, eq=False)
class Attempt:
    """One call to one replica, while it runs. `scope` lets others end it, whatever it waits for."""

    replica: Replica
    started: float  # event loop time, like all times here
    last_progress: float
    remaining_tokens: int
    patience: float = 1.0  # factor on the limits
    tokens: int = 0
    first_token: float | None = None
    cause: Cause | None = None
    scope: asyncio.Timeout | None = None
    history: History | None = None
    ticket: Ticket | None = None  # with which it began
    computes: bool = True  # the whole prompt, as far as is known: then its first token tells how fast
    serial: int = 0  # of all attempts of this router
    work: float = 1.0  # tokens that it is expected to make yet
    ended: bool = False
    way: Way | None = None  # None: it ends here, or stays
    move: Move | None = None

    def received(self, tokens: int, now: float) -> None:
        """Note that tokens came."""
        if self.first_token is None:
            self.first_token = now
        self.last_progress = now
        self.tokens += tokens
        self.remaining_tokens -= tokens

    @property
    def per_token(self) -> timedelta | None:
        """Measured time per token; None until there are two."""
        if self.first_token is None or self.tokens < 2:  # noqa: PLR2004  # one interval
            return None
        return timedelta(seconds=(self.last_progress - self.first_token) / (self.tokens - 1))

    @property
    def cut(self) -> bool:
        """Whether its engine was asked to end it where it is, so that its abort is ours."""
        return self.move is not None and self.move.handed is not None

    @property
    def open(self) -> bool:
        """Whether nothing has ended it yet, nor been asked to."""
        return self.cause is None and not self.cut and not self.ended

    def as_stream(self) -> Stream:
        """Return what planning has to know."""
        history = self.history
        return Stream(
            id=f"{self.serial:09d}",
            context_tokens=self.tokens if history is None else history.length,
            made_tokens=self.tokens,
            remaining_tokens=self.remaining_tokens,
            per_token=self.per_token,
            counts_outputs=history is not None and counts_outputs(history.choice.rendered.sampling),
            adapter=None if history is None else history.choice.adapter,
            copied={} if self.move is None else dict(self.move.copied),
        )

    def break_off(self, cause: Cause) -> None:
        """End the attempt where it waits; the stream goes on elsewhere."""
        if self.cause is not None:
            return
        self.cause = cause
        if self.scope is not None:
            self.scope.reschedule(asyncio.get_running_loop().time())
