"""The engine model's speed, and the planning formulas beside it: capacity of mixtures and utilisation limits.

`python -m bench.simulator` prints the whole grid of utilisation limits as the table of docs/allocation.md.
The engine is Llama-2-7B on an A100-80GB by the roofline of `medley profile estimate`; requests are of the presets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache

import numpy as np

from bench.rows import Row
from medley.cli.profile.catalogue import gpu
from medley.core.latency import LatencyModel
from medley.core.workload import Slo
from medley.planning import mixture, queueing
from medley.planning.mixture import Sizes, Stream
from medley.planning.presets import preset
from medley.planning.roofline import Dtype, ModelShape, Roofline
from medley.simulation.arrivals import Requests, gamma
from medley.simulation.fleet import Replica, serve
from medley.simulation.served import Served

LLAMA_7B = ModelShape(6.74e9, 32, 4096, 32, 128, Dtype.FP16, Dtype.FP16)
LONGEST = 18_000
TOKENS_PER_SECOND = 1e6  # of simulated output, on one core
MIXES = ("chat", "summarization")
REPLICAS = (1, 2, 4, 10, 40)
CVS = (1, 2, 4)
PERCENTILES = (90.0, 95.0, 99.0)
SLO = Slo(99.0, timedelta(seconds=2), timedelta(milliseconds=40))
FINEST = 0.02  # of utilisations found by bisection
# Sizes that get in one another's way: prompts of thousands of tokens beside short answers, and long answers.
PAIRS = (
    ((8000, 1), (200, 50)),
    ((4000, 20), (100, 200)),
    ((2000, 100), (100, 1500)),
    ((6000, 40), (50, 800)),
)
# Engines, mixes and promises that no constant of the formulas was set by: GPU, mix, TPOT in ms, TTFT in s.
ELSEWHERE = (
    ("h100", "summarization", 20, 1.0),
    ("h100", "code", 40, 0.5),
    ("a10g", "code", 120, 2.0),
    ("l4", "chat", 120, 5.0),
    ("a100-80gb", "chat", 120, 0.5),
)
ELSEWHERE_FLEETS = ((1, 1), (4, 1), (16, 1), (4, 3), (16, 3))  # replicas, CV


@cache
def engine(name: str = "a100-80gb") -> LatencyModel:
    """Return Llama-2-7B on one GPU of a kind."""
    return Roofline(gpu(name), LLAMA_7B).linear(max_running=256, max_batched_tokens=2048)


@dataclass(frozen=True, slots=True)
class Cell:
    """A utilisation limit and what the simulation says of it; `bound` 0: the formula promises none."""

    mix: str
    replicas: int
    cv: int
    percentile: float
    bound: float
    simulated: float  # highest at which the percentile holds
    attained: float  # in a fresh run, planned at `bound`

    @property
    def holds(self) -> bool:
        return self.bound == 0 or self.attained >= self.percentile / 100


def measure() -> Iterator[Row]:
    yield _speed()
    yield from _capacity()
    yield from _pairs()
    cells = grid()
    errors = [cell.bound - cell.simulated for cell in cells]
    yield Row("simulator/utilisation limit: share of cells where the promise holds at it", *_held(cells))
    yield Row(
        "simulator/utilisation limit above what is simulated, worst",
        max(errors),
        "of capacity",
        peer=f"{len(cells)} cells: 2 mixes x {len(REPLICAS)} fleets x CV 1, 2, 4 x 3 percentiles",
    )
    yield Row("simulator/utilisation limit below what is simulated, worst", -min(errors), "of capacity")
    yield Row("simulator/utilisation limit, error, median", statistics.median(map(abs, errors)), "of capacity")
    yield _elsewhere()
    for mix in MIXES:
        for number in REPLICAS:
            row = {c.cv: c for c in cells if (c.mix, c.replicas, c.percentile) == (mix, number, 99.0)}
            others = "; ".join(f"CV {cv}: {row[cv].bound:.2f} ({row[cv].simulated:.2f})" for cv in CVS[1:])
            yield Row(
                f"simulator/utilisation limit, {mix}, {number} replicas, p99, Poisson",
                row[1].bound,
                "of capacity",
                peer=f"simulated {row[1].simulated:.2f}; {others}",
            )


def grid() -> list[Cell]:
    """Return all cells, every one from seeds of its own."""
    return [cell for mix in MIXES for number in REPLICAS for cv in CVS for cell in _cells(mix, number, cv)]


def streams(mix: str) -> list[Stream]:
    """Return the requests of a preset, spread evenly over their buckets."""
    found = mixture.streams(preset(mix).demand(1.0), longest=LONGEST, sizes=Sizes.EVEN)
    return [each for parts in found.values() for each in parts]


def run(
    model: LatencyModel, mix: Sequence[Stream], replicas: int, rate: float, *, cv: float, count: int, seed: int
) -> Served:
    """Return what `count` requests of a mix meet, less the first fifth; their mean rate is exactly `rate`."""
    chance = np.random.default_rng(seed)
    weights = np.array([each.requests_per_second for each in mix])
    drawn = chance.choice(len(mix), size=count, p=weights / weights.sum())
    inputs = np.array([round(each.input_tokens) for each in mix])[drawn]
    outputs = np.array([max(1, round(each.output_tokens)) for each in mix])[drawn]
    requests = Requests(gamma(rate, cv, count, chance), inputs, outputs).at_rate(rate)
    fleet = [Replica(f"replica-{number:02}", "a100-80gb", model) for number in range(replicas)]
    return serve(requests, fleet).after(count // 5)


def _cells(name: str, replicas: int, cv: int) -> Iterator[Cell]:
    model, mix = engine(), streams(name)
    whole = _capacity_rate(model, SLO, mix) * replicas
    count = 6_000 * (2 if replicas == max(REPLICAS) or cv == max(CVS) else 1)
    attained: dict[float, float] = {}

    def at(part: float) -> float:
        if part not in attained:
            attained[part] = run(model, mix, replicas, part * whole, cv=cv, count=count, seed=1).attainment(SLO)
        return attained[part]

    for percentile in PERCENTILES:
        wanted, slo = percentile / 100, replace(SLO, percentile=percentile)
        low = max((part for part, got in attained.items() if got >= wanted), default=0.0)
        high = min((part for part, got in attained.items() if part > low and got < wanted), default=1.2)
        while high - low > FINEST:
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle) >= wanted else (low, middle)
        found = queueing.utilisation(model, slo, mix, replicas=replicas, dispersion=cv**2)
        bound = found.value if found is not None else 0.0
        fresh = run(model, mix, replicas, bound * whole, cv=cv, count=count, seed=2).attainment(SLO) if bound else 1.0
        yield Cell(name, replicas, cv, percentile, bound, low, fresh)


def elsewhere() -> Iterator[tuple[str, float, float | None, float]]:
    """Yield each case with its percentile, the limit (None: none is given) and what a run planned at it attains."""
    for name, mix, ms, ttft in ELSEWHERE:
        for replicas, cv in ELSEWHERE_FLEETS:
            for percentile in (90.0, 99.0):
                slo = Slo(percentile, timedelta(seconds=ttft), timedelta(milliseconds=ms))
                able = [
                    each
                    for each in streams(mix)
                    if mixture.serves(engine(name), slo, each.input_tokens, each.output_tokens)
                ]
                found = queueing.utilisation(engine(name), slo, able, replicas=replicas, dispersion=cv**2)
                attained = 1.0
                if found is not None:
                    rate = found.value * replicas * _capacity_rate(engine(name), slo, able)
                    count = 6_000 * (2 if cv > 1 else 1)
                    attained = run(engine(name), able, replicas, rate, cv=cv, count=count, seed=8).attainment(slo)
                yield (
                    f"{name}, {mix}, {ms} ms, {ttft:g} s, {replicas} replicas, CV {cv}",
                    percentile,
                    None if found is None else found.value,
                    attained,
                )


def _elsewhere() -> Row:
    found = list(elsewhere())
    kept = sum(attained >= percentile / 100 for _, percentile, _, attained in found)
    broken = [f"{what}, p{p:g}: {100 * got:.1f} %" for what, p, _, got in found if got < p / 100]
    return Row(
        "simulator/utilisation limit: share of cells where the promise holds, other engines and promises",
        100 * kept / len(found),
        "%",
        "100",
        kept == len(found),
        "; ".join(broken) or f"{len(found)} cells, {sum(limit is None for _, _, limit, _ in found)} promised nothing",
    )


def _held(cells: Sequence[Cell]) -> tuple[float, str, str, bool, str]:
    kept = sum(cell.holds for cell in cells)
    promised = sum(cell.bound > 0 for cell in cells)
    none = f"{len(cells) - promised} of {len(cells)} cells are promised nothing"
    return 100 * kept / len(cells), "%", "100", kept == len(cells), none


def _capacity_rate(model: LatencyModel, slo: Slo, mix: Sequence[Stream]) -> float:
    """Return requests/s of a mix that one replica takes by mean values."""
    found = mixture.capacity(model, slo, mix)
    if found is None:
        raise ValueError(f"{slo} is out of reach")
    return found * sum(each.requests_per_second for each in mix)


def _speed() -> Row:
    mix, count = streams("chat"), 20_000
    rate = 0.6 * _capacity_rate(engine(), SLO, mix) * 4
    started = time.process_time()
    served = run(engine(), mix, 4, rate, cv=1.0, count=count, seed=3)
    seconds = time.process_time() - started
    tokens = served.requests.output_tokens.sum() * count / len(served.requests)
    return Row(
        "simulator/output tokens simulated per second, one core",
        float(tokens / seconds),
        "tokens/s",
        f"at least {TOKENS_PER_SECOND:g}",
        bool(tokens / seconds >= TOKENS_PER_SECOND),
        f"chat, 4 replicas, {count / seconds:,.0f} requests/s, with all arrivals drawn",
    )


def _capacity() -> Iterator[Row]:
    """Saturated engines beside the rows: sizes alone, and halves of two sizes together."""
    model = replace(engine(), max_running=32)
    loose = Slo(50.0, timedelta(hours=1), None)
    alone: list[float] = []
    together: list[float] = []
    for one, other in PAIRS:
        rates = []
        for size in (one, other):
            stream = Stream(*size, 1.0)
            rates.append(_saturated(model, [stream]))
            alone.append(_capacity_rate(model, loose, [stream]) / rates[-1] - 1)
        mix = [Stream(*size, rate / 2) for size, rate in zip((one, other), rates, strict=True)]
        together.append(_capacity_rate(model, loose, mix) / _saturated(model, mix) - 1)
    for what, errors in (("sizes alone", alone), ("two sizes together", together)):
        yield Row(
            f"simulator/mean-value capacity against a saturated engine, {what}, worst",
            100 * max(errors, key=abs),
            "% off",
            peer="long prompts, long answers, 32 slots",
        )


def _saturated(model: LatencyModel, mix: Sequence[Stream]) -> float:
    """Return requests/s that end while the queue is never empty."""
    ends = np.sort(run(model, mix, 1, 1e6, cv=1.0, count=6000, seed=4).last_token_s)
    first, last = len(ends) // 5, len(ends) * 4 // 5
    return float((last - first) / (ends[last] - ends[first]))


def _pairs() -> Iterator[Row]:
    """Two sizes, each at half of what it sustains alone: what adding loads would plan, and what rows and u plan."""
    added: list[float] = []
    planned: list[float] = []
    factors: list[float] = []
    for pair in PAIRS:
        alone = [_sustained([Stream(*size, 1.0)]) for size in pair]
        mix = [Stream(*size, rate / 2) for size, rate in zip(pair, alone, strict=True)]
        rate = sum(each.requests_per_second for each in mix)
        added.append(run(engine(), mix, 1, rate, cv=1.0, count=12_000, seed=5).attainment(SLO))
        limit = queueing.utilisation(engine(), SLO, mix, replicas=1)
        factor = 0.0 if limit is None else limit.value * _capacity_rate(engine(), SLO, mix) / rate
        factors.append(factor)
        if factor:
            planned.append(run(engine(), mix, 1, factor * rate, cv=1.0, count=12_000, seed=6).attainment(SLO))
    yield Row(
        "simulator/two sizes, loads measured alone added up: attainment, worst",
        100 * min(added),
        "%",
        peer=f"p99 promised; all {len(PAIRS)} pairs: {', '.join(f'{100 * each:.1f}' for each in added)}",
    )
    yield Row(
        "simulator/two sizes, planned by rows and utilisation limit: attainment, worst",
        100 * min(planned),
        "%",
        "at least 99",
        min(planned) >= SLO.percentile / 100,
        f"at {', '.join(f'{each:.2f}' for each in factors)} of the added rates",
    )


def _sustained(mix: Sequence[Stream]) -> float:
    """Return the requests/s at which one replica keeps the promise, by bisection."""
    low, high = 0.0, 1.2 * _capacity_rate(engine(), SLO, mix)
    top = high
    while high - low > FINEST * top:
        middle = (low + high) / 2
        kept = run(engine(), mix, 1, middle, cv=1.0, count=8000, seed=7).attainment(SLO) >= SLO.percentile / 100
        low, high = (middle, high) if kept else (low, middle)
    return low


def main() -> None:
    """Print the grid as a table in Markdown: bound (simulated), one row per mix, fleet and CV."""
    print("| mix | replicas | CV | p90 | p95 | p99 |\n|---|---|---|---|---|---|")
    for mix in MIXES:
        for number in REPLICAS:
            for cv in CVS:
                shown = [
                    f"{c.bound:.2f} ({c.simulated:.2f}){'' if c.holds else ' **missed**'}"
                    if c.bound
                    else f"none ({c.simulated:.2f})"
                    for c in _cells(mix, number, cv)
                ]
                print(f"| {mix} | {number} | {cv} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
