"""Mélange's own programme: its example, what its own solver answers, and how the allocator compares with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from medley.core.accelerators import Market, Shape
from medley.core.errors import InvalidInputError
from medley.core.service import Limits
from medley.core.workload import Demand
from medley.planning.allocator import allocate
from medley.planning.melange import SlicedAllocation, Unservable, as_published, sliced
from medley.planning.problem import Allocation
from medley.testing.allocation import (
    GRID,
    LARGE,
    MELANGE_EXAMPLE,
    MELANGE_OLDER_EXAMPLE,
    SMALL,
    config,
    melange,
    rates,
)

A10G, A100 = Shape("A10G"), Shape("A100-80GB")
CENT = 0.005


def solved(example, requests_per_second, slices):
    asked = melange(example, requests_per_second)
    prices = {offering.key.shape: offering.usd_per_hour for offering in asked.offerings}
    return sliced(asked.demand, asked.throughput, prices, slices=slices)


@pytest.mark.parametrize(
    ("example", "requests_per_second", "slices", "a10g", "a100", "usd"),
    [
        pytest.param(MELANGE_EXAMPLE, 30.0, 1, 3, 1, 6.70, id="the example of its README"),
        pytest.param(MELANGE_EXAMPLE, 30.0, 8, 2, 1, 5.69, id="eight slices, as in the paper"),
        pytest.param(MELANGE_EXAMPLE, 32.0, 1, 0, 2, 7.34, id="32/s, one slice"),
        pytest.param(MELANGE_EXAMPLE, 100.0, 4, 0, 4, 14.68, id="100/s"),
        pytest.param(MELANGE_EXAMPLE, 4.0, 1, 2, 0, 2.02, id="4/s"),
        pytest.param(MELANGE_OLDER_EXAMPLE, 30.0, 1, 4, 1, 7.71, id="older example"),
        pytest.param(MELANGE_OLDER_EXAMPLE, 32.0, 1, 9, 0, 9.09, id="older example, 32/s: no A100"),
        pytest.param(MELANGE_OLDER_EXAMPLE, 100.0, 2, 18, 2, 25.52, id="older example, 100/s"),
    ],
)
def test_answers_of_the_published_solver(example, requests_per_second, slices, a10g, a100, usd):  # noqa: PLR0917
    found = solved(example, requests_per_second, slices)
    assert isinstance(found, SlicedAllocation)
    assert (dict(found.replicas), found.usd_per_hour) == ({A10G: a10g, A100: a100}, usd)


def test_a_problem_with_markets_and_bounds_is_what_the_paper_makes_of_it():
    asked = melange(MELANGE_EXAMPLE, 30.0)
    spot = tuple(replace(o, key=replace(o.key, market=Market.SPOT), usd_per_hour=9.0) for o in asked.offerings)
    bounded = replace(asked, offerings=asked.offerings + spot, limits=Limits(max_replicas=1), utilisation=0.5)
    assert as_published(bounded, slices=1) == solved(MELANGE_EXAMPLE, 30.0, 1)


def test_every_slice_is_served_once():
    found = solved(MELANGE_EXAMPLE, 30.0, 8)
    for bucket in GRID.buckets():
        assert sum(number for each, _, number in found.slices if each == bucket) == 8


def test_a_size_that_no_gpu_serves_is_named():
    demand = Demand(GRID, ((SMALL, 1.0), (LARGE, 1.0)))
    assert sliced(demand, (rates("l4", {SMALL: 2.0}),), {Shape("l4"): 0.7}, slices=1) == Unservable((LARGE,))


def test_no_slices_and_no_throughput_are_refused():
    demand = Demand(GRID, ((SMALL, 1.0),))
    with pytest.raises(InvalidInputError, match="slices: expected 1 or more, got 0"):
        sliced(demand, (rates("l4", {SMALL: 2.0}),), {Shape("l4"): 0.7}, slices=0)
    with pytest.raises(InvalidInputError, match="no throughput of l4"):
        sliced(demand, (), {Shape("l4"): 0.7}, slices=1)


@pytest.mark.data
def test_all_published_reference_outputs(data):
    """64 answers of Mélange's own solver: two examples, eight rates, four slice factors."""
    examples = {"example_HEAD_d46ab43": MELANGE_EXAMPLE}
    references = json.loads((data / "mix" / "reference-outputs-examples.json").read_text())
    ours = []
    for reference in references:
        example = examples.get(reference["config"], MELANGE_OLDER_EXAMPLE)
        found = solved(example, reference["rate"], reference["slice_factor"])
        counts = {shape.accelerator_class: count for shape, count in found.replicas}
        ours.append({**counts, "cost": found.usd_per_hour})
    assert len(ours) == 64
    assert [each["cost"] for each in ours] == pytest.approx([each["result"]["cost"] for each in references])
    assert ours == [{**each["result"], "cost": round(each["result"]["cost"], 6)} for each in references]


@pytest.mark.data
def test_the_example_is_that_of_the_repository(data):
    published = config(data / "mix" / "melange-example.json")
    assert published == {**MELANGE_EXAMPLE, "slice_factor": 1}


@pytest.mark.data
def test_at_the_size_of_the_paper_nobody_is_cheaper(data):
    """60 buckets, 4 GPU types, 24 instances: eight slices as the reference solved them, continuous shares never dearer."""
    folder = data / "mix"
    for reference in json.loads((folder / "reference-outputs-paper-scale.json").read_text()):
        name = f"synthetic-{reference['kind']}-{reference['slo']}ms.json"
        cut = solved(config(folder / name), reference["rate"], 8)
        continuous = allocate(melange(config(folder / name), reference["rate"]))
        assert isinstance(continuous, Allocation)
        assert cut.usd_per_hour == pytest.approx(reference["highs_aggregated"]["cost"], abs=CENT)
        assert continuous.usd_per_hour <= cut.usd_per_hour + CENT
