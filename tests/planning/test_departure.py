"""At a notice a stream ends where it is, or moves before the deadline."""

from __future__ import annotations

from datetime import timedelta

import pytest

from medley.planning.departure import Finish, Reprefill, departure


def seconds(number):
    return timedelta(seconds=number)


@pytest.mark.parametrize(
    ("remaining", "per_token", "left", "notice", "expected"),
    [
        pytest.param(100, 0.05, 30, 30, Finish(), id="ends in time"),
        pytest.param(480, 0.05, 30, 30, Finish(), id="just, with caution"),
        pytest.param(481, 0.05, 30, 30, Reprefill(seconds(21)), id="just not"),
        pytest.param(4000, 0.05, 120, 120, Reprefill(seconds(84)), id="a third of a long notice is kept"),
        pytest.param(4000, 0.05, 10, 12, Reprefill(seconds(5)), id="at least the reserve"),
        pytest.param(4000, 0.05, 5, 30, Reprefill(seconds(0)), id="now"),
        pytest.param(4000, 0.05, -3, 0, Reprefill(seconds(0)), id="it already went"),
        pytest.param(1, None, 30, 30, Reprefill(seconds(21)), id="unknown speed is not fast"),
        pytest.param(1, 0.0, 0, 0, Reprefill(seconds(0)), id="nothing ends in no time"),
    ],
)
def test_finish_or_move(remaining, per_token, left, notice, expected):
    assert (
        departure(
            remaining_tokens=remaining,
            per_token=None if per_token is None else seconds(per_token),
            left=seconds(left),
            notice_time=seconds(notice),
        )
        == expected
    )
