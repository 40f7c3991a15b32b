"""What may become of one stream when its replica has to go, and how long it may stay.

`carrying` chooses for all streams of a replica together; the router asks again and again until they are gone, so each
answer holds for the moment only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from medley.core import grace

# Time kept free before the deadline: what the engine's supervisor keeps for its own end, for prefill elsewhere, and
# because deadlines are promises of others.
RESERVE = grace.CUT + grace.STOP + grace.BURY + timedelta(seconds=2)
RESERVED_FRACTION = 0.3  # of the time left when the notice came, if that is more
# Measured time per token grows when other streams arrive; a stream that only just ends in time is moved.
CAUTION = 1.25
# Of the time left, what transfers may be planned into: one that the deadline cuts off was in vain.
TRUSTED_FRACTION = 0.8

NONE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Finish:
    """The stream ends where it is before the deadline."""


@dataclass(frozen=True, slots=True)
class Carry:
    """Its KV cache moves to `target`: copied from `copy_after` on while the stream flows, cut off at `cut_after`.

    Until the cut the replica goes on making tokens; they are the client's whatever happens. Times are from now.
    """

    target: str
    copy_after: timedelta
    cut_after: timedelta


@dataclass(frozen=True, slots=True)
class Refill:
    """Cut off at `cut_after`, then prompt + committed tokens are computed again on `target`."""

    target: str
    cut_after: timedelta


@dataclass(frozen=True, slots=True)
class Stay:
    """There is no room elsewhere now, and it is better off here than waiting. Once the replica is gone, it resumes."""


Departure = Finish | Carry | Refill | Stay


def ends_in_time(*, remaining_tokens: int, per_token: timedelta | None, left: timedelta) -> bool:
    """Whether a stream surely ends before the deadline.

    `remaining_tokens` is the most it may still make, `per_token` the measured time per token (None: nothing measured
    yet, and unknown is not fast), `left` the time until the deadline.
    """
    return per_token is not None and left > NONE and remaining_tokens * per_token * CAUTION <= left


def latest_cut(*, left: timedelta, notice_time: timedelta) -> timedelta:
    """Return how long streams may stay: SpotServe's just-in-time arrangement, less a reserve (never negative).

    `notice_time` is how much time there was when the notice came.
    """
    return max(left - max(RESERVE, notice_time * RESERVED_FRACTION), NONE)
