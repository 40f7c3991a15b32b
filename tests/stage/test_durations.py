import pytest

from e2e.stage.durations import seconds
from e2e.stage.processes import StageError


@pytest.mark.parametrize(("text", "expected"), [("1500ms", 1.5), ("30s", 30), ("2m", 120), ("1h", 3600), ("0s", 0)])
def test_a_duration_has_a_unit(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1 day", "1s2"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(StageError, match=r"write a number and a unit \(ms, s, m, h\), such as 30s"):
        seconds(text)
