"""Which replica takes a request: a shape by the plan's shares, then the replica of that shape with the least to do.

The router calls `place` for every request that it sends to an engine; `Credit` is the only state and is a value, so a
sequence of placements can be compared whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medley.core.workload import Bucket, SizeGrid

# Of smooth weighted round robin: what each shape is owed, in requests, per arrival class.
Credit = Mapping[tuple[Bucket, str], float]


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """`LLMService.status.plan.routing`: for each arrival class the fraction of its requests that each shape gets."""

    grid: SizeGrid
    shares: Mapping[Bucket, tuple[tuple[str, float], ...]]  # shape key and share > 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that may take requests: ready, and not leaving."""

    name: str
    shape: str
    running: int
    max_running: int

    @property
    def has_room(self) -> bool:
        """Whether one more request fits."""
        return self.running < self.max_running


@dataclass(frozen=True, slots=True)
class Placement:
    """The replica that takes the request, and the credit to place the next one with."""

    replica: str
    credit: Credit


def place(
    table: RoutingTable | None, bucket: Bucket | None, candidates: Iterable[Candidate], credit: Credit
) -> Placement | None:
    """Return where a request of this class goes, or None: wait until there is room.

    Shapes without a share may be unable to hold the request, so they are used only if the class has no shares, or no
    shape with a share has any candidate. Ties go to the name, so that two runs over one fleet agree.
    """
    candidates = tuple(candidates)
    shares = dict(table.shares.get(bucket, ())) if table is not None and bucket is not None else {}
    planned = [each for each in candidates if each.shape in shares]
    if not planned or bucket is None:
        free = [each for each in candidates if each.has_room]
        return Placement(_least_loaded(free).name, credit) if free else None
    free = [each for each in planned if each.has_room]
    if not free:
        return None
    owed = {shape: shares[shape] for shape in sorted({each.shape for each in free})}
    whole = sum(owed.values())
    after = {shape: credit.get((bucket, shape), 0.0) + share / whole for shape, share in owed.items()}
    chosen = max(after, key=lambda shape: after[shape])  # the first of equals: shapes are in order
    after[chosen] -= 1.0
    replica = _least_loaded([each for each in free if each.shape == chosen])
    return Placement(replica.name, {**credit, **{(bucket, shape): value for shape, value in after.items()}})


def _least_loaded(candidates: list[Candidate]) -> Candidate:
    return min(candidates, key=lambda each: (each.running / each.max_running, each.running, each.name))
