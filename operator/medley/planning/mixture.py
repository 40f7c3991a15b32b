"""What a replica can carry when sizes mix: mean values per resource, linear in the rates.

    at = operating_step(model, slo, mix)             # the step time to run at; None: the promise is out of reach
    throughput = mixed(shape, model, slo, demand, longest=4096)     # rows for the allocator

Called by `queueing` and by whoever makes an AllocationProblem. Pure. Derivation: docs/allocation.md, "Mixtures".

Rates of sizes measured alone do not add: one size may be bound by step time and another by memory, and each leaves
what the other needs. Here every resource has a row of its own. A replica whose steps take `step_s` on average runs
1 / step_s steps per second, so requests/s of rates l and sizes (i, o) fit it if

    time     sum l work(i, o)          <= 1 - model.step_s / step_s
    memory   sum l step_s held(i, o)   <= model.kv_tokens
    slots    sum l step_s steps(i, o)  <= model.max_running
    tokens   sum l step_s (i + o - 1)  <= model.max_batched_tokens

The longer the steps, the more work fits a second and the more requests are present at once. Any step time up to the
TPOT bound gives a sound set of rows; `operating_step` is the one at which the mix gets the most out of the replica.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from medley.core.accelerators import Shape
from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.workload import Bucket, Demand, SizeGrid, Slo
from medley.planning.problem import Load, ShapeThroughput
from medley.planning.sizes import largest_request

BLOCK_TOKENS = (
    16  # vLLM's default: KV memory is given out in blocks, so a request holds half a block that it does not use
)
# Without a bound on TPOT steps may be as long as anyone likes and more only adds to latency: the work that fits at
# this multiple of the shortest step is 95 % of what fits at all.
_LONGEST_STEP = 20.0


class Sizes(StrEnum):
    """How large the requests of a bucket are taken to be."""

    LARGEST = "largest"  # all as its largest: safe whatever they are
    EVEN = "even"  # spread evenly over its ranges


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of one size, at a rate or with a weight."""

    input_tokens: float
    output_tokens: float
    requests_per_second: float

    def __post_init__(self) -> None:
        if not (self.input_tokens >= 1 and self.output_tokens >= 1 and self.requests_per_second > 0) or not all(
            math.isfinite(each) for each in (self.input_tokens, self.output_tokens, self.requests_per_second)
        ):
            raise InvalidInputError(
                "mix", f"expected at least one token in and out and a rate above 0, got {self}; leave the size out"
            )


@dataclass(frozen=True, slots=True)
class Use:
    """What one replica's resources give to requests of rate 1/s, as parts of all there is; at one step time."""

    time: float
    memory: float
    slots: float
    tokens: float

    @property
    def most(self) -> float:
        """The part of the resource that is used most; 1 / most requests/s fit."""
        return max(self.time, self.memory, self.slots, self.tokens)

    @property
    def bound(self) -> str:
        """Name of the resource that is used most."""
        return max(("time", "memory", "slots", "tokens"), key=lambda name: float(getattr(self, name)))


def work_s(model: LatencyModel, input_tokens: float, output_tokens: float) -> float:
    """Return the seconds that one request adds to the steps it takes part in, beyond what a step takes anyway."""
    decoded = output_tokens - 1  # the step that ends the prompt yields the first token
    return (
        model.per_prefill_token_s * input_tokens
        + decoded * model.per_sequence_s
        + model.per_context_token_s * decoded * (input_tokens + output_tokens / 2)
    )


def steps_present(model: LatencyModel, input_tokens: float, output_tokens: float) -> float:
    """Return the steps in which a request takes a slot: its prompt's, then one per further token."""
    return math.ceil(input_tokens / model.max_batched_tokens) + output_tokens - 1


def held_tokens(model: LatencyModel, input_tokens: float, output_tokens: float) -> float:
    """Return tokens x steps of KV memory that one request holds: its whole prompt at once, then one more a step."""
    prompt = math.ceil(input_tokens / model.max_batched_tokens)
    return prompt * (input_tokens + BLOCK_TOKENS / 2) + (output_tokens - 1) * (
        input_tokens + output_tokens / 2 + BLOCK_TOKENS / 2
    )


def use(model: LatencyModel, step_s: float, mix: Iterable[Stream]) -> Use:
    """Return what a mix takes of one replica whose steps take `step_s` on average; above 1: more than it has."""
    mix = tuple(mix)
    usable = 1 - model.step_s / step_s
    if usable <= 0:
        raise InvalidInputError("step_s", f"expected above the empty step's {model.step_s:g} s, got {step_s:g}")

    def total(each: Iterable[float]) -> float:
        return math.fsum(stream.requests_per_second * one for stream, one in zip(mix, each, strict=True))

    return Use(
        time=total(work_s(model, s.input_tokens, s.output_tokens) for s in mix) / usable,
        memory=step_s * total(held_tokens(model, s.input_tokens, s.output_tokens) for s in mix) / model.kv_tokens,
        slots=step_s * total(steps_present(model, s.input_tokens, s.output_tokens) for s in mix) / model.max_running,
        tokens=step_s * total(s.input_tokens + s.output_tokens - 1 for s in mix) / model.max_batched_tokens,
    )


def operating_step(model: LatencyModel, slo: Slo, mix: Iterable[Stream]) -> float | None:
    """Return the mean step time at which a replica carries the most of a mix; None: no step is short enough.

    Time allows a rate (1 - step_s/t) / w, which grows with t; memory, slots and tokens allow m / t, which falls. They
    meet at t = step_s + m w; beyond the TPOT bound nobody may go.
    """
    longest = slo.tpot.total_seconds() if slo.tpot is not None else _LONGEST_STEP * model.step(1, 1, 1)
    if longest <= model.step_s:
        return None
    at = use(model, longest, mix)
    others = max(at.memory, at.slots, at.tokens)
    if at.time >= others:
        return longest
    # In terms of the use at `longest`: w = time x (1 - step_s/longest), and 1/m = others / longest.
    meeting = model.step_s + at.time * (1 - model.step_s / longest) * longest / others
    # Work of next to nothing would be carried in steps that are next to empty: rows need some time to divide by.
    return max(meeting, min(longest, model.step_s * (1 + 1e-6) + 1e-9))


def capacity(model: LatencyModel, slo: Slo, mix: Sequence[Stream]) -> float | None:
    """Return how many times a mix fits one replica, by mean values; None: the promise is out of reach."""
    at = operating_step(model, slo, mix)
    return None if at is None else 1 / use(model, at, mix).most


def streams(demand: Demand, *, longest: int, sizes: Sizes = Sizes.LARGEST) -> dict[Bucket, tuple[Stream, ...]]:
    """Return each bucket's requests as streams of single sizes.

    `longest`: tokens, input + output, of the longest request that is let in; buckets that hold none are left out.
    """
    found: dict[Bucket, tuple[Stream, ...]] = {}
    for bucket, rate in demand.requests_per_second:
        top = largest_request(demand.grid, bucket, longest)
        if top is None:
            continue
        if sizes is Sizes.LARGEST:
            found[bucket] = (Stream(*top, rate),)
            continue
        low = demand.grid.smallest(bucket)
        pairs = [(i, o) for i in _two(low[0], top[0]) for o in _two(low[1], top[1])]
        found[bucket] = tuple(Stream(i, o, rate / len(pairs)) for i, o in pairs)
    return found


def mixed(
    shape: Shape,
    model: LatencyModel,
    slo: Slo,
    demand: Demand,
    *,
    longest: int,
    able: Iterable[Bucket] | None = None,
    sizes: Sizes = Sizes.LARGEST,
) -> ShapeThroughput | None:
    """Return the rows of one replica: requests/s of each bucket alone, and a load per resource, at one step time.

    `demand`: what the replicas of this shape are expected to get, which chooses the step time. `able`: buckets that the
    shape serves within the SLO; None: those of which it serves the largest request when idle. None if no step is short
    enough or there is no such bucket.
    """
    able = frozenset(served(model, slo, demand.grid, longest=longest) if able is None else able)
    expected = streams(demand, longest=longest, sizes=sizes)
    mix = [stream for bucket, parts in expected.items() if bucket in able for stream in parts]
    every = Demand(demand.grid, tuple((bucket, 1.0) for bucket in sorted(able)))
    apart = streams(every, longest=longest, sizes=sizes)
    if not apart:
        return None
    step_s = operating_step(model, slo, mix or [stream for parts in apart.values() for stream in parts])
    if step_s is None:
        return None
    taken = {bucket: use(model, step_s, parts) for bucket, parts in apart.items()}
    return ShapeThroughput(
        shape,
        tuple((bucket, 1 / each.most) for bucket, each in taken.items()),
        loads=tuple(
            Load(name, tuple((bucket, float(getattr(each, name))) for bucket, each in taken.items()))
            for name in ("time", "memory", "slots", "tokens")
        ),
        throughput_row=False,
    )


def served(model: LatencyModel, slo: Slo, grid: SizeGrid, *, longest: int) -> tuple[Bucket, ...]:
    """Return the buckets of which an idle replica serves the largest request within the SLO."""
    found = []
    for bucket in grid.buckets():
        top = largest_request(grid, bucket, longest)
        if top is not None and serves(model, slo, *top):
            found.append(bucket)
    return tuple(found)


def serves(model: LatencyModel, slo: Slo, input_tokens: float, output_tokens: float) -> bool:
    """Say whether an idle replica serves a request within the SLO: it fits the memory and both bounds hold."""
    if input_tokens + output_tokens > model.kv_tokens:
        return False
    first = model.step_s * math.ceil(input_tokens / model.max_batched_tokens) + model.per_prefill_token_s * input_tokens
    each = model.step(0, 1, input_tokens + output_tokens / 2)
    return (slo.ttft is None or first <= slo.ttft.total_seconds()) and (
        slo.tpot is None or output_tokens <= 1 or each <= slo.tpot.total_seconds()
    )


def _two(low: float, high: float) -> tuple[float, ...]:
    """Return two sizes with the mean and variance of all whole numbers of a range."""
    middle, offset = (low + high) / 2, math.sqrt(((high - low + 1) ** 2 - 1) / 12)
    return middle - offset, middle + offset
