"""Buckets, demand and the SLO."""

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.core.workload import MELANGE_GRID, Bucket, Demand, SizeGrid, Slo

GRID = SizeGrid((100, 1000), (50, 500))


@pytest.mark.parametrize(
    ("sizes", "bucket"),
    [
        pytest.param((1, 1), Bucket(0, 0), id="smallest"),
        pytest.param((100, 50), Bucket(0, 0), id="upper edges belong to the range"),
        pytest.param((101, 51), Bucket(1, 1), id="just above"),
        pytest.param((10**6, 10**6), Bucket(1, 1), id="beyond the last edge"),
    ],
)
def test_bucket_of_a_request(sizes, bucket):
    assert GRID.bucket(*sizes) == bucket


@given(st.integers(1, 16000), st.integers(1, 2000))
def test_a_request_is_never_larger_than_the_sizes_of_its_bucket(input_tokens, output_tokens):
    largest = MELANGE_GRID.sizes(MELANGE_GRID.bucket(input_tokens, output_tokens))
    assert input_tokens <= largest[0]
    assert output_tokens <= largest[1]


def test_the_papers_grid_has_sixty_buckets_in_row_order():
    buckets = MELANGE_GRID.buckets()
    assert len(buckets) == 60
    assert buckets[:7] == (*(Bucket(0, o) for o in range(6)), Bucket(1, 0))


@pytest.mark.parametrize("edges", [(), (0, 10), (10, 10), (20, 10)])
def test_edges_that_do_not_ascend_are_refused(edges):
    with pytest.raises(InvalidInputError, match="inputEdges: expected ascending token counts"):
        SizeGrid(edges, (10,))


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_no_rates_are_refused(rate):
    with pytest.raises(InvalidInputError, match="expected positive rates"):
        Demand(GRID, ((Bucket(0, 0), rate),))


def test_a_bucket_named_twice_is_refused():
    with pytest.raises(InvalidInputError, match="named twice"):
        Demand(GRID, ((Bucket(0, 0), 1.0), (Bucket(0, 0), 2.0)))


def test_total_demand():
    assert Demand(GRID, ((Bucket(0, 0), 1.5), (Bucket(1, 1), 2.5))).total == 4.0


def test_an_slo_promises_something_at_a_percentile():
    with pytest.raises(InvalidInputError, match=r"spec\.slo: promise at least one"):
        Slo(99, None, None)
    with pytest.raises(InvalidInputError, match=r"spec\.slo\.percentile: expected a number between 0 and 100, got 100"):
        Slo(100, timedelta(seconds=1), None)
