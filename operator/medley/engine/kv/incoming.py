"""What an engine makes of a ticket that a request brings; pure. Called by the scheduler's half of the connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from medley.engine.kv.layout import Geometry, mismatch
from medley.engine.kv.puller import Load
from medley.wire.assignment import faults_of
from medley.wire.ticket import TICKET_PARAMETER, Ticket


class RefusedError(Exception):
    """A ticket that is of no use here; the request is computed instead."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be equal in two engines that exchange blocks."""

    geometry: Geometry
    numerics: str
    model: str


def accepted(parameters: Any, identity: Identity) -> Ticket | None:
    """Return the ticket in a request's kv_transfer_params, None if there is none; RefusedError says what is wrong."""
    if not isinstance(parameters, Mapping) or parameters.get(TICKET_PARAMETER) is None:
        return None
    try:
        ticket = Ticket.model_validate(parameters[TICKET_PARAMETER])
    except ValidationError as error:
        raise RefusedError(faults_of(error, "ticket", most=1)) from error
    if reason := mismatch(ticket, identity.geometry, identity.numerics, identity.model):
        raise RefusedError(reason)
    return ticket if ticket.valid_tokens else None


def worth(ticket: Ticket, *, tokens: int, here: int) -> int:
    """Return how many tokens to take from a ticket, for a request of `tokens` of which `here` are cached locally.

    The last token is always computed: the next one is sampled from it.
    """
    return max(0, min(ticket.valid_tokens, tokens - 1) - here)


def load(ticket: Ticket, request_id: str, blocks: Sequence[int], *, tokens: int, taken: int, within_s: float) -> Load:
    """Return the load of the last `taken` of the tokens that a ticket is worth into a request's `blocks`.

    What is here already ends with a whole block, and is not read again.
    """
    total = min(ticket.valid_tokens, tokens - 1)
    first, last = (total - taken) // ticket.block_size, -(-total // ticket.block_size)
    return Load(request_id, ticket, first, tuple(blocks[first:last]), min(within_s, ticket.lease_s))


def exportable(*, computed: int, in_flight: int, tokens: int, loading: bool) -> int:
    """Return how many positions of a request are certainly written, and will not be written again.

    `computed` counts steps that are still under way (`in_flight`) as done, and tokens that are only being loaded. The
    last token's position is written by the step that it takes part in next.
    """
    return 0 if loading else max(0, min(computed - in_flight, tokens - 1))
