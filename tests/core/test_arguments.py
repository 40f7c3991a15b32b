"""Which words of a command line set an argument that is not the user's to give."""

import pytest

from medley.core.arguments import OPERATORS, SUPERVISORS, reserved


@pytest.mark.parametrize(
    ("word", "name"),
    [
        pytest.param("--port", "--port", id="itself"),
        pytest.param("--port=1", "--port", id="with a value"),
        pytest.param("--max_model_len=5", "--max-model-len", id="underscores"),
        pytest.param("--tensor", "--tensor-parallel-size", id="a beginning"),
        pytest.param("-tp", "-tp", id="short"),
        pytest.param("--portal", None, id="a longer word"),
        pytest.param("--gpu-memory-utilization=0.9", None, id="another"),
        pytest.param("0.9", None, id="a value"),
        pytest.param("--", None, id="dashes"),
        pytest.param("-t", None, id="the beginning of a short one"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_reserved(word, name):
    assert reserved(word, SUPERVISORS) == name


def test_the_operators_own_are_none_of_the_supervisors():
    assert not SUPERVISORS.keys() & OPERATORS.keys()
