"""At a notice a stream ends where it is, or leaves before the deadline."""

from __future__ import annotations

from datetime import timedelta

import pytest

from medley.core.grace import BURY, CUT, LEAST_SPOT_GRACE, SPOT_GRACE, STOP
from medley.planning.departure import ends_in_time, latest_cut


def seconds(number):
    return timedelta(seconds=number)


@pytest.mark.parametrize(
    ("remaining", "per_token", "left", "expected"),
    [
        pytest.param(100, 0.05, 30, True, id="ends in time"),
        pytest.param(480, 0.05, 30, True, id="just, with caution"),
        pytest.param(481, 0.05, 30, False, id="just not"),
        pytest.param(1, None, 30, False, id="unknown speed is not fast"),
        pytest.param(1, 0.0, 0, False, id="nothing ends in no time"),
        pytest.param(1, 0.05, -3, False, id="it already went"),
    ],
)
def test_whether_a_stream_ends_in_time(remaining, per_token, left, expected):
    measured = None if per_token is None else seconds(per_token)
    assert ends_in_time(remaining_tokens=remaining, per_token=measured, left=seconds(left)) is expected


@pytest.mark.parametrize(
    ("left", "notice", "expected"),
    [
        pytest.param(30, 30, 21, id="a third of the notice is kept"),
        pytest.param(120, 120, 84, id="of a long one too"),
        pytest.param(10, 12, 4, id="at least the reserve"),
        pytest.param(5, 30, 0, id="now"),
        pytest.param(-3, 0, 0, id="it already went"),
    ],
)
def test_how_long_a_stream_may_stay(left, notice, expected):
    assert latest_cut(left=seconds(left), notice_time=seconds(notice)) == seconds(expected)


@pytest.mark.parametrize("whole", sorted({*SPOT_GRACE.values(), LEAST_SPOT_GRACE}))
def test_streams_leave_before_their_engines_supervisor_ends_them(whole):
    supervisor_cuts = whole - CUT - STOP - BURY
    assert latest_cut(left=whole, notice_time=whole) <= supervisor_cuts - seconds(2)
