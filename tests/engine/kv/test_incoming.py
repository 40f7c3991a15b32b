"""What is taken from a ticket, and what of a request may be exported."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.engine.kv.incoming import Identity, RefusedError, accepted, exportable, load, worth
from medley.engine.kv.layout import Shard
from tests.engine.kv.cache import GEOMETRY, MODEL, NUMERICS, Address, ticket

HERE = Identity(GEOMETRY, NUMERICS, MODEL)


def one(blocks: int, **changes):
    return ticket(
        [(Shard(("a",), 0, 1), Address("h", 1), b"")], tuple(range(100, 100 + blocks)), Address("h", 2), **changes
    )


@pytest.mark.parametrize("parameters", [None, {}, {"medley": None}, {"other": 1}, [], 7], ids=str)
def test_requests_without_a_ticket_are_ordinary(parameters):
    assert accepted(parameters, HERE) is None


def test_a_ticket_comes_as_json_and_one_without_tokens_is_none():
    offered = one(2)
    assert accepted({"medley": offered.model_dump(mode="json")}, HERE) == offered
    nothing = one(1).model_dump() | {"valid_tokens": 0, "blocks": (), "sources": (), "pins": None}
    assert accepted({"medley": nothing}, HERE) is None


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ("x", "ticket"),
        ({}, "export_id"),
        (one(2).model_dump() | {"blocks": [1]}, "blocks"),
        (one(2).model_dump() | {"blocks": [1, -2]}, "blocks.1"),
        (one(2, model="9" * 64).model_dump(), "another model"),
        (one(2, numerics="9" * 64).model_dump(), "other numbers"),
    ],
    ids=["text", "empty", "too few blocks", "a negative block", "model", "numerics"],
)
def test_a_ticket_that_is_of_no_use_says_why(raw, named):
    with pytest.raises(RefusedError, match=named):
        accepted({"medley": raw}, HERE)


@given(valid=st.integers(1, 60), tokens=st.integers(1, 80), cached=st.integers(0, 20))
def test_a_load_covers_what_is_missing_and_leaves_the_last_token_to_compute(valid, tokens, cached):
    size = GEOMETRY.block_size
    here = min(cached * size, tokens // size * size)  # what vLLM finds in its own cache ends with a block
    offered = one(-(-valid // size), valid_tokens=valid)
    taken = worth(offered, tokens=tokens, here=here)
    assert taken == max(0, min(valid, tokens - 1) - here)
    if taken:
        blocks = list(range(-(-tokens // size)))
        planned = load(offered, "r", blocks, tokens=tokens, taken=taken, within_s=60)
        assert planned.first == here // size
        assert planned.into == tuple(blocks[planned.first : -(-(here + taken) // size)])
        assert planned.within_s == 30  # never longer than the lease


@pytest.mark.parametrize(
    ("computed", "in_flight", "tokens", "loading", "valid"),
    [
        (330, 0, 331, False, 330),
        (331, 0, 331, False, 330),
        (332, 2, 331, False, 330),
        (2048, 0, 3700, False, 2048),
        (2048, 2048, 3700, False, 0),
        (0, 0, 5, False, 0),
        (300, 0, 331, True, 0),
    ],
    ids=[
        "decoding",
        "all computed",
        "two steps ahead",
        "in mid-prefill",
        "first chunk under way",
        "waiting",
        "loading",
    ],
)
def test_only_positions_that_are_written_for_good_are_exported(computed, in_flight, tokens, loading, valid):
    assert exportable(computed=computed, in_flight=in_flight, tokens=tokens, loading=loading) == valid
