"""Measured traffic outlives the operator in the status: what is read is what was written."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.api.llmservice_status import Burst, WorkloadClass, WorkloadStatus
from medley.core.workload import Bucket, SizeGrid
from medley.kube.workload_status import traffic_in, workload_status
from medley.planning.traffic import ClassTraffic, Traffic
from medley.testing.builders import NOW

GRID = SizeGrid((100, 1000), (50, 200))
TRAFFIC = Traffic(
    GRID,
    (ClassTraffic(Bucket(0, 1), 2.57, (250, 750)), ClassTraffic(Bucket(1, 0), 0.0031, (1000, 0))),
    ((1, 1.0), (8, 2.5)),
    7200,
    NOW,
)
WRITTEN = WorkloadStatus(
    requests_per_second="2.57",
    requests=7200,
    input_edges=(100, 1000),
    output_edges=(50, 200),
    classes=(
        WorkloadClass(input=0, output=1, requests_per_second="2.57", made=(250, 750)),
        WorkloadClass(input=1, output=0, requests_per_second="0.0031", made=(1000, 0)),
    ),
    bursts=(Burst(window_seconds=1, dispersion="1"), Burst(window_seconds=8, dispersion="2.5")),
    measured_at=NOW,
)


def test_what_is_written_is_read():
    assert workload_status(TRAFFIC) == WRITTEN
    assert traffic_in(WRITTEN) == TRAFFIC


@given(st.floats(1e-4, 1e6), st.floats(1.0, 1e4), st.integers(0, 10**9))
def test_no_digit_is_lost(rate, dispersion, micros):
    rounded = (float(f"{rate:.3g}"), float(f"{dispersion:.3g}"))
    asked = Traffic(GRID, (ClassTraffic(Bucket(0, 0), rounded[0], (1000, 0)),), ((1, rounded[1]),), 100, NOW)
    late = NOW + timedelta(microseconds=micros)
    again = traffic_in(workload_status(Traffic(GRID, asked.classes, asked.bursts, 100, late)))
    assert (again.classes, again.bursts) == (asked.classes, asked.bursts)
    assert again.measured_at == late.replace(microsecond=0)


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(None, id="nothing"),
        pytest.param(WorkloadStatus(), id="empty"),
        pytest.param(WRITTEN.model_copy(update={"input_edges": (9, 3)}), id="edges out of order"),
        pytest.param(
            WRITTEN.model_copy(update={"classes": (WorkloadClass(input=0, output=0, requests_per_second="x"),)}),
            id="no number",
        ),
        pytest.param(
            WRITTEN.model_copy(update={"classes": (WorkloadClass(input=0, output=0, requests_per_second="1"),)}),
            id="no outputs",
        ),
        pytest.param(
            WRITTEN.model_copy(
                update={"classes": (WorkloadClass(input=0, output=0, requests_per_second="1", made=(0, 1)),)}
            ),
            id="more than max_tokens",
        ),
        pytest.param(
            WRITTEN.model_copy(
                update={"classes": (WorkloadClass(input=0, output=0, requests_per_second="-1", made=(1,)),)}
            ),
            id="a negative rate",
        ),
    ],
)
def test_what_is_not_understood_is_measured_anew(written):
    assert traffic_in(written) is None
