"""What becomes of one stream when its replica has to go: it ends in time, or it moves.

The router asks for every stream of a leaving replica, again and again until the stream is gone, so each answer holds
for the moment only. `Carry` (pulling the KV cache) will be one more member of `Departure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

# Time kept free before the deadline: for prefill elsewhere, and because deadlines are promises of others.
RESERVE = timedelta(seconds=5)
RESERVED_FRACTION = 0.3  # of the time left when the notice came, if that is more
# Measured time per token grows when other streams arrive; a stream that only just ends in time is moved.
CAUTION = 1.25


@dataclass(frozen=True, slots=True)
class Finish:
    """The stream ends where it is before the deadline."""


@dataclass(frozen=True, slots=True)
class Reprefill:
    """Stop here after `wait`, then send prompt + committed tokens to another replica. Zero: at once.

    Until then the replica goes on making tokens; they are the client's whatever happens.
    """

    wait: timedelta


Departure = Finish | Reprefill


def departure(
    *, remaining_tokens: int, per_token: timedelta | None, left: timedelta, notice_time: timedelta
) -> Departure:
    """Choose for one stream.

    `remaining_tokens` is the most it may still make, `per_token` the measured time per token (None: nothing measured
    yet), `left` the time until the deadline, `notice_time` how much of it there was when the notice came.
    """
    if per_token is not None and left > timedelta(0) and remaining_tokens * per_token * CAUTION <= left:
        return Finish()
    reserve = max(RESERVE, notice_time * RESERVED_FRACTION)
    return Reprefill(max(left - reserve, timedelta(0)))
