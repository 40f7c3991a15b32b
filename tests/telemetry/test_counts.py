"""What routers say of their traffic arrives as they said it: both ends of the metrics that the operator reads."""

from __future__ import annotations

import pytest

from medley.core.errors import EngineError
from medley.core.traffic import WINDOWS_S, Arrivals, Counts
from medley.core.workload import SizeGrid
from medley.router.metrics import RouterMetrics
from medley.telemetry.counts import counts

GRID = SizeGrid((100, 1000), (50, 200))


def test_what_a_router_counted():
    now = 0.0
    metrics = RouterMetrics(lambda: now)
    for at, prompt, limit in ((0.1, 80, 40), (1.2, 900, 200), (1.9, 5000, 4096)):
        now = at
        bucket = GRID.bucket(prompt, limit)
        metrics.asked(GRID, bucket, prompt)
    metrics.finished(GRID, bucket, 60)
    metrics.finished(GRID, bucket, 50)
    metrics.turned_away(3)
    now = 4.0
    idle = dict.fromkeys(WINDOWS_S[2:], Arrivals(0.0, 0.0))
    assert counts(metrics.exposition().decode()) == Counts(
        requests={(100, 50): 1.0, (1000, 200): 2.0},
        outputs={(1000, 200, 200): 1.0, (1000, 200, 50): 1.0},
        turned_away=3.0,
        # Counts of 1, 2, 0, 0 in seconds, of which the first has none before it; 3 and 0 in two seconds.
        arrivals={1: Arrivals(2.0, 1.0 + 4.0), 2: Arrivals(0.0, 9.0), **idle},
    )


def test_a_router_that_counted_nothing():
    found = counts(RouterMetrics(lambda: 0.0).exposition().decode())
    assert found == Counts(arrivals=dict.fromkeys(WINDOWS_S, Arrivals(0.0, 0.0)))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("<html>", id="no metrics"),
        pytest.param("go_goroutines 7.0\n", id="somebody else's"),
        pytest.param('medley_router_requests_total{input_bucket="x",output_bucket="1"} 1.0\n', id="no edge"),
        pytest.param("medley_router_requests_total 1.0\n", id="no labels"),
    ],
)
def test_what_is_no_router_s_is_refused(text):
    with pytest.raises(EngineError, match="reading a router's metrics"):
        counts(text)
