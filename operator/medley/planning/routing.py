"""Which replica takes a request: a shape by the plan's shares, then the replica of that shape with the least to do.

Both rules give way, within bounds, to a replica that holds the beginning of the prompt in its prefix cache: a shape may
run ahead of its share by `slack` requests, a replica of the least loaded by `TOLERATED_REQUESTS` of this one's size.
The router calls `place` for every request that it sends to an engine; `Credit` is the only state and is a value, so a
sequence of placements can be compared whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from medley.core.workload import Bucket, SizeGrid

# Of smooth weighted round robin: what each shape is owed, in requests, per arrival class.
Credit = Mapping[tuple[Bucket, str], float]

# How much more a replica may have to do than the least loaded one for the sake of a prefix, in requests like this one.
TOLERATED_REQUESTS = 2.0
# Shorter common prefixes are not worth a detour: system prompts that all replicas have soon anyway, and one block's
# worth of prefill.
LEAST_PREFIX_TOKENS = 32


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """`LLMService.status.plan.routing`: for each arrival class the fraction of its requests that each shape gets."""

    grid: SizeGrid
    shares: Mapping[Bucket, tuple[tuple[str, float], ...]]  # shape key and share > 0


class Candidate(NamedTuple):
    """A replica that may take requests: ready, and not leaving."""

    name: str
    shape: str
    running: int
    max_running: int
    work: float | None = None  # tokens that its requests are expected to make yet; None: counted by requests
    prefix_tokens: int = 0  # of this request's prompt, that its cache holds

    @property
    def load(self) -> float:
        """What it has to do, by what it can do at once; compared between replicas of one shape."""
        return (self.running if self.work is None else self.work) / self.max_running

    @property
    def has_room(self) -> bool:
        """Whether one more request fits."""
        return self.running < self.max_running


class Placement(NamedTuple):
    """The replica that takes the request, and the credit to place the next one with."""

    replica: str
    credit: Credit


def place(
    table: RoutingTable | None,
    bucket: Bucket | None,
    candidates: Iterable[Candidate],
    credit: Credit,
    *,
    slack: float = 0.0,
    size: float = 1.0,
) -> Placement | None:
    """Return where a request of this class goes, or None: wait until there is room.

    `slack`: requests by which a shape may be ahead of its share. `size`: tokens that the request is expected to make,
    in the unit of the candidates' `work`. Shapes without a share may be unable to hold the request, so they are used
    only if the class has no shares, or no shape with a share has any candidate. Ties go to the name, so that two runs
    over one fleet agree.
    """
    candidates = tuple(candidates)
    shares = dict(table.shares.get(bucket, ())) if table is not None and bucket is not None else {}
    planned = [each for each in candidates if each.shape in shares]
    if not planned or bucket is None:
        free = [each for each in candidates if each.has_room]
        return Placement(_preferred(free, size).name, credit) if free else None
    free = [each for each in planned if each.has_room]
    if not free:
        return None
    owed = {shape: shares[shape] for shape in sorted({each.shape for each in free})}
    whole = sum(owed.values())
    after = {shape: credit.get((bucket, shape), 0.0) + share / whole for shape, share in owed.items()}
    preferred = {shape: _preferred([each for each in free if each.shape == shape], size) for shape in owed}
    due = max(after, key=lambda shape: after[shape])  # the first of equals: shapes are in order
    allowed = [shape for shape in after if after[shape] - 1.0 >= -slack]
    holding = max(allowed, key=lambda shape: preferred[shape].prefix_tokens, default=due)
    gain = preferred[holding].prefix_tokens - preferred[due].prefix_tokens
    chosen = holding if gain >= LEAST_PREFIX_TOKENS else due
    after[chosen] -= 1.0
    return Placement(preferred[chosen].name, {**credit, **{(bucket, shape): value for shape, value in after.items()}})


def _preferred(free: list[Candidate], size: float) -> Candidate:
    """Return the least loaded replica, or one not much more loaded that holds more of the prompt."""
    if len(free) == 1:
        return free[0]
    least = min(free, key=_order)
    near = [each for each in free if each.load <= least.load + TOLERATED_REQUESTS * size / each.max_running]
    holding = min(near, key=lambda each: (-each.prefix_tokens, _order(each)))
    return holding if holding.prefix_tokens - least.prefix_tokens >= LEAST_PREFIX_TOKENS else least


def _order(candidate: Candidate) -> tuple[float, int, str]:
    return candidate.load, candidate.running, candidate.name
