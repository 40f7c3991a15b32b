"""Any tensor and pipeline sizes can read from any others, each slice once; what nobody holds is named."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.engine.kv.layout import Geometry, IncompleteError, Pull, Shard, mismatch, paired, pulls, runs, shard, split
from medley.wire.ticket import Source
from tests.engine.kv.cache import GEOMETRY, MODEL, NUMERICS, Address, layers, shards, ticket

SIZES = st.sampled_from([1, 2, 4, 8])
STAGES = st.sampled_from([1, 2, 3])
HEADS = st.sampled_from([1, 2, 4, 8])


def sources(held: list[Shard]) -> list[Source]:
    return [
        Source(
            host="h",
            port=1,
            pp=0,
            tp=index,
            layers=each.layers,
            head_lo=each.head_lo,
            head_n=each.head_n,
            grant="0" * 64,
        )
        for index, each in enumerate(held)
    ]


def slices(held: Shard) -> set[tuple[str, int]]:
    return {(layer, head) for layer in held.layers for head in range(held.head_lo, held.head_lo + held.head_n)}


@given(HEADS, st.integers(8, 12), st.tuples(SIZES, STAGES), st.tuples(SIZES, STAGES), st.integers(0, 9))
def test_every_worker_gets_each_of_its_slices_once_from_who_holds_it(heads, count, source, target, turn):
    holders = shards(layers_total=count, heads=heads, tp=source[0], pp=source[1])
    for wanted in shards(layers_total=count, heads=heads, tp=target[0], pp=target[1]):
        plan = pulls(wanted, sources(holders), turn=turn)
        assert all(slices(pull.shard) <= slices(holders[pull.source]) for pull in plan)
        assert Counter(piece for pull in plan for piece in slices(pull.shard)) == Counter(slices(wanted))


@given(HEADS, SIZES)
def test_all_ranks_together_hold_every_head(heads, tp):
    held = [shard(("a",), heads_here=max(1, heads // tp), heads_total=heads, tp=rank, tp_size=tp) for rank in range(tp)]
    assert {head for each in held for _, head in slices(each)} == set(range(heads))


def test_readers_of_repeated_heads_turn_to_different_holders():
    held = [Shard(("a",), 0, 1)] * 4
    assert [pulls(Shard(("a",), 0, 1), sources(held), turn=rank)[0].source for rank in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ([Shard(("a",), 0, 4)], "heads 0 to 3 of b"),
        ([Shard(("a", "b"), 0, 2)], "heads 2 to 3 of a"),
        ([Shard(("a", "b"), 0, 1), Shard(("a", "b"), 2, 2)], "heads 1 to 1 of a"),
        ([], "heads 0 to 3 of a"),
    ],
    ids=["a layer", "heads", "a head between", "all"],
)
def test_what_nobody_holds_is_named(held, named):
    with pytest.raises(IncompleteError, match=named):
        pulls(Shard(("a", "b"), 0, 4), sources(held))


@given(st.integers(1, 20), st.integers(1, 6))
def test_a_read_is_divided_by_layers_without_loss(count, parts):
    whole = Pull(3, Shard(layers(count), 2, 5))
    divided = split(whole, parts)
    assert tuple(layer for part in divided for layer in part.shard.layers) == whole.shard.layers
    assert {(part.source, part.shard.head_lo, part.shard.head_n) for part in divided} == {(3, 2, 5)}
    assert len(divided) == min(parts, count)
    assert max(len(part.shard.layers) for part in divided) - min(len(part.shard.layers) for part in divided) <= 1


@given(st.lists(st.integers(0, 30), unique=True))
def test_runs_are_the_same_blocks_in_the_same_order_and_none_can_be_longer(blocks):
    found = runs(blocks)
    assert [first + step for first, count in found for step in range(count)] == blocks
    assert all(first + count != after for (first, count), (after, _) in pairwise(found))


@given(st.lists(st.integers(1, 9), max_size=8), st.randoms(use_true_random=False))
def test_pieces_are_cut_where_either_side_ends(sizes, chance):
    def laid_out(lengths, base):
        return [(base + 100 * index, length) for index, length in enumerate(lengths)]

    whole = [byte for place, length in laid_out(sizes, 0) for byte in range(place, place + length)]
    other, left = [], sum(sizes)
    while left:
        other.append(chance.randint(1, left))
        left -= other[-1]
    here, there = paired(laid_out(sizes, 0), laid_out(other, 10_000))
    assert [size for _, size in here] == [size for _, size in there]
    assert [byte for place, length in here for byte in range(place, place + length)] == whole
    assert sum(size for _, size in there) == sum(other)
    with pytest.raises(ValueError, match="do not correspond"):
        paired(laid_out([*sizes, 1], 0), laid_out(other, 10_000))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"model": "3" * 64}, "another model"),
        ({"numerics": "3" * 64}, "other numbers"),
        ({"block_size": 8, "valid_tokens": 8}, "another layout"),
        ({"dtype": "bfloat16"}, "another layout"),
        ({"content": 8}, "another layout"),
    ],
    ids=str,
)
def test_only_equal_engines_exchange_blocks(change, said):
    one = ticket([(Shard(("a",), 0, 1), Address("h", 1), b"")], (5,), Address("h", 2), **change)
    assert mismatch(one, GEOMETRY, NUMERICS, MODEL).startswith(said) is True
    assert bool(mismatch(one, GEOMETRY, NUMERICS, MODEL)) is bool(said)
    assert mismatch(one, Geometry(1, "int8", 1), NUMERICS, MODEL)
