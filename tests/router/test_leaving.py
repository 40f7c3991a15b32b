"""What becomes of a notice: which streams are told to go where, by what was measured and what engines said."""

from __future__ import annotations

from datetime import timedelta

import pytest

from medley.core.service import MigrationMode
from medley.planning.carrying import ASSUMED_BYTES_PER_S, Link, Target
from medley.planning.routing import Candidate
from medley.router.attempt import Attempt, History
from medley.router.leaving import Knowledge, Measured
from medley.router.session import Cause, Choice
from medley.router.text import TextRules
from medley.wire.generate import Rendered
from medley.wire.ticket import KvState
from tests.router.test_fleet import World, leaving, replica


def state(numerics="n", *, capable=True, free_blocks=1000):
    return KvState(
        mode=MigrationMode.AUTO,
        capable=capable,
        numerics=numerics,
        block_size=16,
        bytes_per_token=1000,
        total_blocks=2000,
        free_blocks=free_blocks,
    )


def history(prompt_tokens, **sampling):
    rendered = Rendered((7,) * prompt_tokens, 10_000, 0, {"temperature": 0, **sampling}, {})
    return History(Choice("id", rendered, 1, TextRules()))


def moving(*names, states, sources=("a",), prompt=2000, seconds=4.0):
    """A world whose sources leave, with one stream of a long prompt on each; all that is to be carried is written down."""
    there = [*names]
    world = World(*(replica(name) for name in there))
    world.fleet.knowledge.states.update(states)
    carried = []
    world.fleet.leaving.carry = carried.append
    attempts = {}
    for name in sources:
        attempts[name] = world.open(name, tokens=5, remaining=9000, at=-1.0)
        attempts[name].history = history(prompt)
    world.show(*(leaving(name, seconds) if name in sources else replica(name) for name in there))
    return world, attempts, carried


def test_a_stream_is_carried_between_engines_that_may_exchange_kv():
    _, attempts, carried = moving("a", "b", states={"a": state(), "b": state()})
    way = attempts["a"].way
    assert (way.target, way.carried, carried, attempts["a"].cause) == ("b", True, [attempts["a"]], None)


@pytest.mark.parametrize(
    "states",
    [{}, {"a": state()}, {"b": state()}, {"a": state(), "b": state("m")}, {"a": state(capable=False), "b": state()}],
    ids=["no plugin", "target without", "source without", "other numerics", "not capable"],
)
def test_otherwise_it_is_told_to_go_and_be_computed_again(states):
    world, attempts, carried = moving("a", "b", states=states)
    world.later(4)
    assert (attempts["a"].cause, attempts["a"].way.carried, carried) == (Cause.NOTICE, False, [])


def test_a_target_that_is_new_is_asked_before_anything_is_chosen():
    world, attempts, carried = moving("a", "b", states={"a": state()}, seconds=10.0)
    world.later(0.5)
    assert (attempts["a"].way, carried) == (None, [])
    world.fleet.knowledge.states["b"] = state()
    world.later(0.1)
    assert (attempts["a"].way.carried, carried) == (True, [attempts["a"]])


@pytest.mark.parametrize(("without", "waits"), [({"b"}, False), (set(), True)], ids=["has no plugin", "says nothing"])
def test_a_target_that_cannot_take_it_or_never_answers_is_not_waited_for(without, waits):
    world, attempts, _ = moving("a", "b", states={"a": state()}, seconds=10.0)
    world.fleet.knowledge.without |= without
    world.later(0.1)
    assert (attempts["a"].way is None) == waits
    world.later(1.0)
    assert (attempts["a"].way.target, attempts["a"].way.carried) == ("b", False)


def test_what_one_leaving_replica_was_given_the_other_cannot_have():
    """Both want the 2,000 tokens that are free on c; the one that does not get them stays."""
    states = {"a": state(), "b": state(), "c": state(free_blocks=130)}
    world, attempts, _ = moving("a", "b", "c", states=states, sources=("a", "b"), seconds=20.0)
    assert sorted(attempt.way is None for attempt in attempts.values()) == [False, True]
    world.later(1)
    assert sorted(attempt.way is None for attempt in attempts.values()) == [False, True]


def test_a_notice_that_is_withdrawn_leaves_the_stream_where_it_is():
    world, attempts, _ = moving("a", "b", states={"a": state(), "b": state()}, seconds=60.0)
    assert attempts["a"].way is not None
    world.show(replica("a"), replica("b"))
    assert (attempts["a"].way, attempts["a"].cause) == (None, None)


def test_a_target_that_leaves_too_is_given_up():
    world, attempts, _ = moving("a", "b", "c", states={name: state() for name in "abc"}, seconds=60.0)
    first = attempts["a"].way.target
    other = "c" if first == "b" else "b"
    world.show(leaving("a", 60), leaving(first, 60), replica(other))
    assert attempts["a"].way.target == other


def test_what_is_known_of_a_target():
    knowledge = Knowledge({"a": state(), "b": state(free_blocks=100)})
    knowledge.prefill_tokens_per_s["b"] = Measured(5000.0)
    knowledge.adapters["b"] = frozenset({"sql"})
    here = Candidate("b", "l4", 3, 10)
    assert knowledge.target(here, replica("b", resumes_output=True), "a") == Target(
        "b", 7, 1600, 16, 5000.0, carries=True, takes_outputs=True, leaves=False, adapters=frozenset({"sql"})
    )
    assert Knowledge().target(here, replica("b"), "a") == Target("b", 7, None, 1)


def test_the_way_out_is_as_fast_as_large_copies_were():
    knowledge = Knowledge({"a": state()})
    assert knowledge.link("a") == Link(1000, ASSUMED_BYTES_PER_S)
    knowledge.carried("a", 1_000_000, 1.0)  # a small copy is mostly waiting
    assert knowledge.link("a").bytes_per_s == ASSUMED_BYTES_PER_S
    for _ in range(40):
        knowledge.carried("a", 20_000_000, 1.0)
    assert knowledge.link("a").bytes_per_s == pytest.approx(20e6, rel=0.01)
    for _ in range(40):
        knowledge.carried("a", 10_000_000, 0.01)  # but it can prove speed
    assert knowledge.link("a").bytes_per_s == pytest.approx(1e9, rel=0.01)
    assert knowledge.link("b") is None


def test_prefill_is_measured_by_long_prompts_that_were_computed():
    knowledge, there = Knowledge(), replica("a")
    for tokens in (100, 1000):
        attempt = Attempt(there, 10.0, 10.0, 100, first_token=10.5, history=history(tokens))
        knowledge.prefilled(attempt)
    cached = Attempt(there, 10.0, 10.0, 100, first_token=10.01, history=history(1000), computes=False)
    knowledge.prefilled(cached)
    assert knowledge.prefill_tokens_per_s == {"a": Measured(2000.0)}


def test_replicas_that_are_gone_are_forgotten():
    knowledge = Knowledge({"a": state(), "b": state()}, adapters={"a": frozenset({"sql"})}, lengths={"a": 5, "b": 9})
    knowledge.forget({"b": replica("b")})
    assert (knowledge.states.keys(), knowledge.all_adapters(), knowledge.longest) == ({"b"}, frozenset(), 9)


def test_a_stream_is_described_by_its_log():
    attempt = Attempt(replica("a"), 0.0, 0.0, 90, history=history(100, presence_penalty=1.0), serial=3)
    attempt.history.committed += [1, 2]
    attempt.received(1, 1.0)
    attempt.received(1, 1.5)
    stream = attempt.as_stream()
    assert (stream.id, stream.context_tokens, stream.made_tokens, stream.remaining_tokens) == ("000000003", 102, 2, 88)
    assert (stream.per_token, stream.counts_outputs) == (timedelta(seconds=0.5), True)
    assert (attempt.history.prefix(3), attempt.history.prefix(101)) == ((7, 7, 7), (*(7,) * 100, 1))
