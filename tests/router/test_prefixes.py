"""What the router remembers of the engines' prefix caches, and what it makes of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medley.router.prefixes import BLOCK_TOKENS, PrefixIndex, keys_of

TOKENS = list(range(1000))


def test_a_prompt_is_known_by_its_whole_blocks():
    index = PrefixIndex()
    index.add("a", keys_of(TOKENS[:100]))
    index.add("b", keys_of([*TOKENS[:40], *range(5000, 5100)]))
    assert index.held(keys_of(TOKENS)) == {"a": 96, "b": 32}
    assert index.held(keys_of(TOKENS[:31])) == {}
    assert index.held(keys_of(TOKENS[1:])) == {}


def test_adapters_and_salts_share_nothing():
    index = PrefixIndex()
    index.add("a", keys_of(TOKENS, ("sql", "")))
    assert index.held(keys_of(TOKENS, ("", ""))) == {}


def test_a_replica_that_is_gone_is_forgotten():
    index = PrefixIndex()
    index.add("a", keys_of(TOKENS))
    index.add("b", keys_of(TOKENS[:64]))
    index.forget("a")
    assert (index.held(keys_of(TOKENS)), len(index)) == ({"b": 64}, 2)


def test_memory_is_bounded_and_the_ends_of_what_was_used_longest_ago_go_first():
    index = PrefixIndex(most_blocks=6)
    old, new = keys_of(range(128)), keys_of(range(1000, 1128))
    index.add("a", old)
    index.add("a", new)
    assert len(index) == 6
    assert (index.held(new), index.held(old)) == ({"a": 128}, {"a": 64})


PROMPTS = st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 1), max_size=5)), max_size=12)


def blocks(pattern):
    return [token for block in pattern for token in [block] * BLOCK_TOKENS]


@given(PROMPTS, st.lists(st.integers(0, 1), max_size=5))
def test_what_is_held_is_the_longest_common_beginning(sent, asked):
    index = PrefixIndex()
    for name, pattern in sent:
        index.add(name, keys_of(blocks(pattern)))

    def common(pattern):
        return next(
            (n for n, (a, b) in enumerate(zip(pattern, asked, strict=False)) if a != b), min(len(pattern), len(asked))
        )

    best = {name: max(common(p) for other, p in sent if other == name) for name, _ in sent}
    assert index.held(keys_of(blocks(asked))) == {name: n * BLOCK_TOKENS for name, n in best.items() if n}
