"""Traces of spot nodes: how often one is taken away, from both published forms."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.cli import spot_traces
from medley.cli.spot_traces import Losses
from medley.core.errors import InvalidInputError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spot.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("unit", "scale"), [("h", 1), ("s", 3600), ("ms", 3_600_000), ("m", 60)])
def test_nodes_over_time(tmp_path, unit, scale):
    # Four nodes for an hour, two for two hours, three for one: 11 node-hours, and two losses at once.
    text = f"0,4\n{scale},4\n{scale},2\n{3 * scale},3\n{4 * scale},3\n"
    found = spot_traces.read(written(tmp_path, text), unit)
    assert found == Losses(timedelta(hours=4), 11.0, 2, 1)
    assert found.per_node_hour == pytest.approx(2 / 11)


def test_names_of_nodes(tmp_path):
    events = [
        [0, "add", {"nodes": ["a", "b"]}],
        [1_800_000, "remove", {"nodes": ["a"]}],
        [3_600_000, "DONE", {"nodes": []}],
    ]
    path = written(tmp_path, "\n".join(map(json.dumps, events)))
    assert spot_traces.read(path, None) == Losses(timedelta(hours=1), 1.5, 1, 1)


def test_a_trace_without_losses_has_a_rate_of_zero_and_an_upper_bound(tmp_path):
    found = spot_traces.read(written(tmp_path, "0,10\n100,10\n"), "h")
    low, high = found.bounds
    assert (found.per_node_hour, low) == (0.0, 0.0)
    assert high == pytest.approx(3.0 / 1000, rel=0.02)  # of 0 events: about 3 at 95 %, one-sided


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        pytest.param("0,1\n1,1\n", None, "--spot-history: ", id="no unit"),
        pytest.param("0,1\n", "d", "expected a unit of time among ms, s, m, h, got 'd'", id="a unit that is none"),
        pytest.param("0,1\nx,1\n", "s", "line 2: expected a time and a number of nodes, got 'x,1'", id="word"),
        pytest.param("0,1,2\n", "s", "line 1: expected a time and a number of nodes", id="three columns"),
        pytest.param("0,1\n5,1\n4,1\n", "s", "entry 3: expected times that never fall", id="time goes back"),
        pytest.param("0,1\nnan,1\n", "s", "entry 2: expected times that never fall", id="NaN"),
        pytest.param("0,-1\n1,1\n", "s", "entry 1: expected 0 to 1000000 nodes, got -1", id="negative"),
        pytest.param("0,0\n5,0\n", "s", "holds no node for any time", id="never a node"),
        pytest.param("", "s", "holds no node for any time", id="empty"),
        pytest.param('[0, "remove", {"nodes": ["a"]}]', None, "line 1: removes a, which was never added", id="unknown node"),
        pytest.param('[0, "add"]', None, 'line 1: expected [milliseconds, "add"', id="no nodes"),
        pytest.param("[0, ", None, "line 1: is not JSON", id="not JSON"),
        pytest.param('[0, "add", {"nodes": ["a"]}]', "s", "counts in ms; leave out :s", id="another unit"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, text, unit, message):
    with pytest.raises(InvalidInputError) as refused:
        spot_traces.read(written(tmp_path, text), unit)
    assert message in str(refused.value)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), min_size=2, max_size=30))
def test_losses_are_the_drops_and_the_rate_is_within_its_bounds(tmp_path_factory, steps):
    steps = sorted(steps, key=lambda step: step[0])
    path = tmp_path_factory.getbasetemp() / "steps.csv"
    path.write_text("\n".join(f"{time!r},{nodes}" for time, nodes in steps))
    if not any(nodes * (after - time) > 0 for (time, nodes), (after, _) in pairwise(steps)):
        with pytest.raises(InvalidInputError, match="holds no node"):
            spot_traces.read(path, "h")
        return
    found = spot_traces.read(path, "h")
    assert found.lost == sum(max(before - after, 0) for (_, before), (_, after) in pairwise(steps))
    low, high = found.bounds
    assert 0 <= low <= found.per_node_hour <= high


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "unit", "per_node_hour"),
    [
        pytest.param("parcae/p3.csv", "ms", 0.611, id="Parcae"),
        pytest.param("bamboo/aws-spot-instances-p2-xlarge-2020-11-20-to-2020-11-23.csv", "h", 0.129, id="Bamboo"),
        pytest.param("spotserve/trace_0304_real.txt", None, 0.923, id="SpotServe"),
    ],
)
def test_published_traces(data, name, unit, per_node_hour):
    assert spot_traces.read(data / "spot" / name, unit).per_node_hour == pytest.approx(per_node_hour, abs=1e-3)
