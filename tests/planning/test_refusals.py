"""What is in the way of a size, in one line with its number first."""

from __future__ import annotations

from datetime import timedelta

import pytest

from medley.core.workload import Slo
from medley.planning.predicted import TooFarBeyond
from medley.planning.refusals import in_the_way, reason
from medley.planning.throughput import NotMeasured, OutOfReach, PercentileMissing, SloMissed, TooLong

PROMISE = Slo(99, timedelta(seconds=2), timedelta(milliseconds=100))


def ms(value: float) -> timedelta:
    return timedelta(milliseconds=value)


def slow(ttft: float, tpot: float, *, holds: int = 9000, alone: bool = False) -> OutOfReach:
    return OutOfReach((2000, 1000), ms(ttft), ms(tpot), holds, alone)


@pytest.mark.parametrize(
    ("unable", "promise", "said"),
    [
        pytest.param(
            slow(919, 117.4),
            PROMISE,
            "SLO: TPOT 117 ms at one request of 2000 + 1000 tokens, limit 100 ms",
            id="TPOT",
        ),
        pytest.param(
            slow(2870, 62), PROMISE, "SLO: TTFT 2,870 ms at one request of 2000 + 1000 tokens, limit 2,000 ms", id="TTFT"
        ),
        pytest.param(
            slow(2870, 100.4),
            PROMISE,
            "SLO: TTFT 2,870 ms and TPOT 100 ms at one request of 2000 + 1000 tokens, limit 2,000 ms and 100 ms",
            id="both",
        ),
        pytest.param(
            slow(9000, 120),
            Slo(99, None, timedelta(milliseconds=100)),
            "SLO: TPOT 120 ms at one request of 2000 + 1000 tokens, limit 100 ms",
            id="what is not promised is not missed",
        ),
        pytest.param(
            slow(762, 60.4, alone=True),
            Slo(99.9, timedelta(seconds=2), None),
            "SLO: over 0.1% miss it as soon as one request of 2000 + 1000 tokens meets another "
            "(alone: TTFT 762 ms, TPOT 60.4 ms)",
            id="those that meet",
        ),
        pytest.param(
            slow(919, 60, holds=2500),
            PROMISE,
            "memory: needs 3,000 tokens of KV cache for one request of 2000 + 1000 tokens, has 2,500",
            id="memory",
        ),
        pytest.param(
            SloMissed(0.5, ms(300), ms(155)),
            PROMISE,
            "SLO: TPOT 155 ms at 0.5 requests/s of 500 + 250 tokens, the lowest rate measured, limit 100 ms",
            id="measured points",
        ),
        pytest.param(
            NotMeasured(500, 250, (100, 50)),
            PROMISE,
            "profile: measured up to 100 + 50 tokens, not at 500 + 250 tokens",
            id="not measured",
        ),
        pytest.param(
            PercentileMissing(99, 95), PROMISE, "profile: measured up to percentile 95, the SLO promises 99", id="percentile"
        ),
        pytest.param(
            TooFarBeyond("tokens of context", 16000, 4000),
            PROMISE,
            "profile: measured up to 4,000 tokens of context, 16,000 are more than 2 times that",
            id="too far beyond",
        ),
        pytest.param(TooLong(16000, 8192), PROMISE, "length: 16,000 tokens, a replica holds 8,192", id="too long"),
    ],
)  # fmt: skip
def test_a_reason(unable, promise, said):
    assert reason(unable, promise, (500, 250)) == said


@pytest.mark.parametrize(
    ("unable", "said"),
    [
        pytest.param([slow(919, 117), SloMissed(1, ms(1), ms(155))], "misses the SLO on it", id="slow"),
        pytest.param([slow(919, 60, holds=2500)], "does not fit its memory", id="memory"),
        pytest.param(
            [NotMeasured(5, 5, (1, 1)), PercentileMissing(99, 95), TooFarBeyond("tokens of context", 9, 4)],
            "is not covered by its profile",
            id="profile",
        ),
        pytest.param([TooLong(16000, 8192)], "is too long for it", id="length"),
        pytest.param([TooLong(16000, 8192), slow(919, 117)], "cannot be served on it", id="several reasons"),
        pytest.param([], "cannot be served on it", id="no reason known"),
    ],
)
def test_what_becomes_of_part_of_the_demand(unable, said):
    assert in_the_way(unable) == said
