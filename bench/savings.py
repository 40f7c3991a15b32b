"""What a mix saves against each single class: six workloads x six rates, as the Mélange paper's appendix C has them.

`python -m bench.savings` prints both tables whole; `measure` gives the rows of `make bench`. Inputs: the six synthetic
ones of MEDLEY_DATA (`mix/synthetic-*.json`; a roofline's throughputs at the paper's size and prices, since the paper's
own were never published). Without them there are no rows.

With spot: three zones, prices of spot in each as far below on-demand as in `examples/acceleratorclasses.yaml` (round
placeholders, labelled there), a floor of 20 % and 80 % that must survive the loss of any zone.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from bench.rows import Row
from medley.core.accelerators import Market, Offering, OfferingKey
from medley.core.service import SpotPolicy
from medley.planning.allocator import cheapest, on_demand_only
from medley.planning.problem import Allocation, AllocationProblem
from medley.testing.allocation import config, melange

DATA = Path(os.environ.get("MEDLEY_DATA") or Path(__file__).parents[2] / "shared" / "data")
EXAMPLES = Path(__file__).parents[1] / "examples" / "acceleratorclasses.yaml"
RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# Highest savings that the paper states per workload, over both of its SLOs (arXiv 2404.14527, section 6.2).
PAPER = {"arena": 77, "pubmed": 33, "mixed": 51}
HEDGE = SpotPolicy(on_demand_floor=0.2, survive_zone_loss=0.8)
COMMAND = "python -m bench.savings"


@dataclass(frozen=True, slots=True)
class Saving:
    """One workload at one rate; prices in USD per hour, alone: of each class that can serve it by itself."""

    workload: str
    requests_per_second: float
    mix: Allocation
    alone: Mapping[str, float]
    hedged: Allocation
    hedged_on_demand_usd_per_hour: float

    def saved(self, name: str) -> float:
        """Part saved against one class alone, 0..1."""
        return 1 - self.mix.usd_per_hour / self.alone[name]

    @property
    def saved_by_spot(self) -> float:
        """Part saved by hedged spot against the cheapest mix on demand alone, 0..1."""
        return 1 - self.hedged.usd_per_hour / self.hedged_on_demand_usd_per_hour


def measure() -> Iterator[Row]:
    """Yield the range of savings per workload, and the means with spot."""
    found = savings()
    for workload in sorted({each.workload for each in found}):
        here = [each for each in found if each.workload == workload]
        parts = [100 * each.saved(name) for each in here for name in each.alone]
        paper = next((most for word, most in PAPER.items() if word in workload), None)
        peer = "" if paper is None else f"paper: up to {paper} % (its own inputs)"
        yield Row(f"savings/{workload}, most", max(parts), "% of a single class", peer=peer, command=COMMAND)
        yield Row(
            f"savings/{workload}, least",
            min(parts),
            "% of a single class",
            "at least 0",
            min(parts) >= -1e-6,
            command=COMMAND,
        )
        yield Row(
            f"savings/{workload}, hedged spot, mean",
            100 * statistics.fmean(each.saved_by_spot for each in here),
            "% of the on-demand mix",
            peer=f"spot at {100 * statistics.fmean(_spot_factors()):.0f} % of on-demand (placeholder)",
            command=COMMAND,
        )


@lru_cache(maxsize=1)
def savings() -> tuple[Saving, ...]:
    """Return every workload at every rate."""
    return tuple(_saving(workload, rate) for workload in workloads() for rate in RATES)


def workloads() -> tuple[str, ...]:
    """Return the names of the inputs that there are."""
    return tuple(sorted(path.stem.removeprefix("synthetic-") for path in DATA.glob("mix/synthetic-*.json")))


def _problem(workload: str, rate: float) -> AllocationProblem:
    return melange(config(DATA / "mix" / f"synthetic-{workload}.json"), rate)


def _saving(workload: str, rate: float) -> Saving:
    problem = _problem(workload, rate)
    alone = {
        shape.accelerator_class: plan.usd_per_hour
        for shape in sorted({each.key.shape for each in problem.offerings})
        if (plan := cheapest(_only(problem, shape.accelerator_class))) is not None
    }
    hedged = _hedged(problem)
    return Saving(workload, rate, _plan(problem), alone, _plan(hedged), _plan(on_demand_only(hedged)).usd_per_hour)


def _plan(problem: AllocationProblem) -> Allocation:
    found = cheapest(problem)
    if found is None:
        raise TypeError("an instance that can be met was refused")
    return found


def _only(problem: AllocationProblem, name: str) -> AllocationProblem:
    kept = tuple(each for each in problem.offerings if each.key.shape.accelerator_class == name)
    return replace(problem, offerings=kept)


def _hedged(problem: AllocationProblem) -> AllocationProblem:
    zones = [f"zone-{letter}" for letter in "abc"]
    factors = dict(zip(zones, _spot_factors(), strict=True))
    return replace(
        problem,
        offerings=tuple(
            Offering(
                OfferingKey(each.key.shape, market, zone),
                round(each.usd_per_hour * (1.0 if market is Market.ON_DEMAND else factors[zone]), 6),
                None,
            )
            for each in problem.offerings
            for market in (Market.ON_DEMAND, Market.SPOT)
            for zone in zones
        ),
        spot=HEDGE,
    )


@lru_cache(maxsize=1)
def _spot_factors() -> tuple[float, float, float]:
    """Return spot over on-demand of the example catalogue's l4, zone by zone."""
    first = next(iter(yaml.safe_load_all(EXAMPLES.read_text())))
    one, two, three = (float(zone["spotPerHour"]) / float(zone["perHour"]) for zone in first["spec"]["zones"])
    return one, two, three


def tables() -> Iterator[Table]:
    """Yield both tables for people."""
    found = savings()
    classes = sorted({name for each in found for name in each.alone})
    against = Table(
        "WORKLOAD", "REQ/S", "MIX", "USD/H", *(f"vs {name}" for name in classes), title="One market, one zone", box=None
    )
    for each in found:
        mix = " ".join(f"{count}x{key.shape}" for key, count in each.mix.replicas)
        parts = [f"{100 * each.saved(name):.0f} %" if name in each.alone else "unable" for name in classes]
        against.add_row(each.workload, f"{each.requests_per_second:g}", mix, f"{each.mix.usd_per_hour:.2f}", *parts)
    yield against
    hedged = Table(
        "WORKLOAD", "REQ/S", "SPOT", "REPLICAS", "USD/H", "ON-DEMAND USD/H", "SAVED", "AGAINST THE BEST SINGLE CLASS",
        title="Three zones, spot, floor 20 %, surviving the loss of any zone's spot to 80 %", box=None,
    )  # fmt: skip
    for each in found:
        best = min(each.alone.values())
        hedged.add_row(
            each.workload,
            f"{each.requests_per_second:g}",
            str(each.hedged.spot_replicas),
            str(each.hedged.total_replicas),
            f"{each.hedged.usd_per_hour:.2f}",
            f"{each.hedged_on_demand_usd_per_hour:.2f}",
            f"{100 * each.saved_by_spot:.0f} %",
            f"{100 * (1 - each.hedged.usd_per_hour / best):.0f} %",
        )
    yield hedged


if __name__ == "__main__":
    if not workloads():
        raise SystemExit(f"no mix/synthetic-*.json in {DATA}; set MEDLEY_DATA")
    console = Console()
    for table in tables():
        console.print(table)
        console.print()
