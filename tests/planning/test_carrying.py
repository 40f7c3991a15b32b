"""All streams of a leaving replica: who ends there, who is carried, who is computed again, and when each goes."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.planning.carrying import Link, Stream, Target, choose, remaining_room
from medley.planning.departure import Carry, Finish, Refill, Stay, ends_in_time, latest_cut


def seconds(number):
    return timedelta(seconds=number)


NOW = seconds(0)


def stream(name="s", context=1000, *, made=10, remaining=100_000, per_token=0.05, **fields):
    measured = None if per_token is None else seconds(per_token)
    return Stream(name, context, made, remaining, measured, **fields)


def target(name="t", slots=8, free=100_000, **fields):
    return Target(name, slots, free, **{"carries": True, "takes_outputs": True, "block_tokens": 16, **fields})


# A thousand tokens pass in 10 ms; the target computes a thousand in half a second.
FAST = Link(bytes_per_token=1000, bytes_per_s=100e6, handover=seconds(0.05))


def decide(streams, targets, link=FAST, left=30, notice=30):
    return choose(streams, targets, link, left=seconds(left), notice_time=seconds(notice))


def test_what_ends_in_time_stays():
    assert decide([stream(remaining=100)], [target()]) == {"s": Finish()}


def test_a_stream_goes_only_where_its_adapter_is_served():
    there = [target("a"), target("b", adapters=frozenset({"sql"}))]
    assert decide([stream(adapter="sql")], there)["s"].target == "b"
    assert decide([stream(adapter="sql")], there[:1]) == {"s": Stay()}
    assert decide([stream(adapter="sql")], there, link=None)["s"].target == "b"


def test_a_long_stream_is_carried_copied_at_once_and_cut_just_in_time():
    chosen = decide([stream()], [target()])["s"]
    assert (chosen.target, chosen.copy_after) == ("t", NOW)
    assert seconds(20.9) < chosen.cut_after < seconds(21)  # 30 % of the notice is kept, and time for the last block


@pytest.mark.parametrize(
    ("link", "fields"),
    [
        pytest.param(None, {}, id="the replica exports nothing"),
        pytest.param(FAST, {"carries": False}, id="other numerics"),
        pytest.param(Link(1000, 1000.0), {}, id="a link of a token per second"),
        pytest.param(Link(1000, 100e6, seconds(3)), {}, id="a prefill is sooner done than a hand-over"),
    ],
)
def test_what_cannot_be_carried_or_not_with_profit_is_computed_again(link, fields):
    assert decide([stream()], [target(**fields)], link) == {"s": Refill("t", seconds(21))}


def test_a_stream_without_a_token_goes_at_once():
    assert decide([stream(made=0)], [target()]) == {"s": Refill("t", NOW)}


def test_after_the_deadline_nothing_is_carried_and_all_go_at_once():
    chosen = decide([stream("a"), stream("b")], [target()], left=-1, notice=0)
    assert chosen["a"] == Refill("t", NOW)
    assert isinstance(chosen["b"], Refill)
    assert chosen["b"].cut_after == NOW


def test_a_short_notice_carries_as_many_as_pass_the_link():
    """0.5 s, of which 0.4 are trusted: ten thousand tokens take 0.1 s, and the block at the cut a little more."""
    streams = [stream(f"s{n}", 10_000) for n in range(6)]
    chosen = decide(streams, [target()], left=0.5, notice=0.5)
    kinds = [type(chosen[f"s{n}"]) for n in range(6)]
    assert (kinds.count(Carry), kinds.count(Refill)) == (3, 3)


def test_counted_outputs_are_carried_only_to_a_target_that_takes_them_back():
    asked = [stream(counts_outputs=True)]
    assert decide(asked, [target(takes_outputs=False)]) == {"s": Refill("t", seconds(21))}
    assert isinstance(decide(asked, [target()])["s"], Carry)


def test_making_the_outputs_again_counts_as_pause():
    there = [target("a", takes_outputs=False), target("b", takes_outputs=True, prefill_tokens_per_s=500.0)]
    asked = stream(made=900, counts_outputs=True)
    assert decide([asked], there, None) == {"s": Refill("b", seconds(21))}
    assert decide([stream(made=900)], there, None) == {"s": Refill("a", seconds(21))}


def test_several_targets_share_by_free_memory():
    streams = [stream("a", 5000), stream("b", 5000)]
    chosen = decide(streams, [target("t1", free=6000), target("t2", free=9000)])
    assert {chosen[name].target for name in "ab"} == {"t1", "t2"}
    assert decide([stream()], [target("t1", free=6000), target("t2", free=9000)])["s"].target == "t2"


def test_a_leaving_target_is_never_chosen():
    assert decide([stream()], [target("t", leaves=True)]) == {"s": Stay()}
    assert decide([stream()], [target("t", leaves=True), target("u", carries=False)])["s"].target == "u"


def test_a_target_that_has_a_copy_is_kept_to():
    link = Link(1000, 1e6)  # a thousand tokens a second
    asked = stream("s", 4000, per_token=None, copied={"a": 3900})
    room = [target("a", prefill_tokens_per_s=300.0), target("b", free=200_000, prefill_tokens_per_s=300.0)]
    assert decide([asked], room, link)["s"].target == "a"


@pytest.mark.parametrize("full", [{"slots": 0}, {"free": 1000}], ids=["slots", "memory: no room for the next token"])
def test_without_room_a_stream_is_better_off_where_it_is(full):
    assert decide([stream()], [target(**full)]) == {"s": Stay()}


def test_prefills_of_one_target_follow_one_another_and_those_with_most_to_make_go_first():
    streams = [stream("a", 1000, remaining=50_000), stream("b", 2000, remaining=90_000), stream("c", 3000)]
    chosen = decide(streams, [target(carries=False)])
    assert list(chosen.items()) == [
        ("c", Refill("t", seconds(21 - 1.0 - 1.5))),
        ("b", Refill("t", seconds(21 - 1.0))),
        ("a", Refill("t", seconds(21))),
    ]


def test_with_little_time_prefills_take_turns_in_what_is_left():
    streams = [stream("a", 1000, remaining=50_000), stream("b", 2000, remaining=90_000), stream("c", 8000)]
    assert decide(streams, [target(carries=False)], left=4, notice=4) == {
        "c": Refill("t", NOW),
        "b": Refill("t", seconds(3.2)),  # of the 4 s before, 0.8 more than may be planned into
        "a": Refill("t", seconds(3.2)),
    }


def test_what_one_replica_gives_away_is_gone_for_the_next():
    streams = [stream("a", 1000), stream("b", 2000, made=0), stream("c", remaining=1)]
    targets = [target("t", slots=4, free=10_000), target("u", slots=0, free=None)]
    left = remaining_room(targets, streams, decide(streams, targets))
    assert left == [target("t", slots=2, free=10_000 - 1008 - 2016), target("u", slots=0, free=None)]


# The oracle: the model as documented, over all assignments


def costs(asked, there, link, cut):
    """Return (pause, link seconds, tokens) of a refill and of a carry, None where it is impossible or no better."""
    prefill = asked.context_tokens / (there.prefill_tokens_per_s or 2000.0)
    if asked.counts_outputs and not there.takes_outputs:
        prefill += asked.made_tokens * asked.per_token.total_seconds()
    tokens = math.ceil((asked.context_tokens + 1) / there.block_tokens) * there.block_tokens
    refill = (prefill, 0.0, tokens)
    if link is None or not there.carries or not asked.made_tokens:
        return refill, None
    if asked.counts_outputs and not there.takes_outputs:
        return refill, None
    per_second = link.bytes_per_s / link.bytes_per_token
    pace = asked.per_token.total_seconds()
    ahead = max(asked.context_tokens - asked.copied.get(there.name, 0), 0)
    ahead += min(asked.remaining_tokens, cut.total_seconds() / pace)
    last = min(there.block_tokens + ahead / per_second / pace, ahead + there.block_tokens)
    carry = (link.handover.total_seconds() + last / per_second, (ahead + last) / per_second, tokens)
    return refill, carry if carry[0] <= prefill else None


def brute_force(streams, targets, link, left, notice):
    cut = latest_cut(left=left, notice_time=notice)
    choices = []
    for each in streams:
        mine = [None]
        for n, there in enumerate(targets):
            mine += [(n, *cost) for cost in costs(each, there, link, cut) if cost is not None]
        choices.append(mine)
    best = None
    for picked in product(*choices):
        used = [each for each in picked if each is not None]
        if sum(each[2] for each in used) > max(left.total_seconds() * 0.8, 0):
            continue
        if any(
            len(here := [each for each in used if each[0] == n]) > there.slots
            or sum(each[3] for each in here) > there.free_tokens
            for n, there in enumerate(targets)
        ):
            continue
        found = (len(picked) - len(used), sum(each[1] for each in used))
        best = found if best is None else min(best, found)
    return best


STREAMS = st.lists(
    st.builds(
        lambda context, made, remaining, pace, counts: (context, min(made, context), remaining, pace, counts),
        st.integers(1, 4000),
        st.sampled_from([0, 1, 50, 900]),
        st.integers(1, 5000),
        st.sampled_from([0.01, 0.05, 0.2]),
        st.booleans(),
    ),
    max_size=4,
)
TARGETS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 9000),
        st.sampled_from([None, 500.0, 20_000.0]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=2,
)
LINKS = st.one_of(st.none(), st.builds(Link, st.just(1000), st.sampled_from([1e4, 1e6, 1e8]), st.just(seconds(0.05))))
TIMES = st.floats(-5, 60)


def made(streams, targets):
    return (
        [stream(f"s{n}", c, made=m, remaining=r, per_token=p, counts_outputs=o) for n, (c, m, r, p, o) in streams],
        [
            target(f"t{n}", slots, free, prefill_tokens_per_s=rate, carries=carries, takes_outputs=takes)
            for n, (slots, free, rate, carries, takes) in targets
        ],
    )


@settings(max_examples=200)
@given(STREAMS, TARGETS, LINKS, TIMES, st.floats(0, 60))
def test_small_cases_are_solved_as_by_trying_everything(streams, targets, link, left, notice):
    streams, targets = made(enumerate(streams), enumerate(targets))
    left, notice = seconds(left), seconds(notice)
    chosen = choose(streams, targets, link, left=left, notice_time=notice)
    moving = [each for each in streams if not isinstance(chosen[each.id], Finish)]
    cut = latest_cut(left=left, notice_time=notice)
    pause = 0.0
    for each in moving:
        match chosen[each.id]:
            case Refill(name):
                pause += costs(each, targets[int(name[1:])], link, cut)[0][0]
            case Carry(name):
                pause += costs(each, targets[int(name[1:])], link, cut)[1][0]
    stayed = sum(isinstance(chosen[each.id], Stay) for each in moving)
    best = brute_force(moving, targets, link, left, notice)
    assert stayed == best[0]
    assert pause == pytest.approx(best[1], abs=1e-6)


MANY = st.lists(
    st.tuples(
        st.integers(1, 30_000),
        st.sampled_from([0, 1, 400]),
        st.integers(1, 50_000),
        st.sampled_from([0.01, 0.05]),
        st.booleans(),
    ),
    max_size=150,
)


@settings(max_examples=40, deadline=None)
@given(MANY, st.lists(TARGETS.map(tuple), max_size=3).map(lambda sets: [t for s in sets for t in s]), LINKS, TIMES)
def test_nothing_scarce_is_given_twice_and_nobody_leaves_too_late(streams, targets, link, left):
    streams, targets = made(enumerate(streams), enumerate(targets))
    left = seconds(left)
    chosen = choose(streams, targets, link, left=left, notice_time=seconds(60))
    cut = latest_cut(left=left, notice_time=seconds(60))
    last = max(cut, left * 0.8)
    assert chosen.keys() == {each.id for each in streams}
    through = 0.0
    for each in streams:
        match chosen[each.id]:
            case Finish():
                assert ends_in_time(remaining_tokens=each.remaining_tokens, per_token=each.per_token, left=left)
            case Carry(name, copy_after, cut_after):
                there = targets[int(name[1:])]
                assert there.carries
                assert there.takes_outputs or not each.counts_outputs
                assert copy_after >= NOW
                assert NOW <= cut_after <= last
                through += costs(each, there, link, cut)[1][1]
            case Refill(_, cut_after):
                assert NOW <= cut_after <= last
    assert through <= max(left.total_seconds() * 0.8, 0) + 1e-6
    for each in remaining_room(targets, streams, chosen):
        assert each.slots >= 0
        assert each.free_tokens >= 0


@settings(max_examples=40)
@given(STREAMS, TARGETS, LINKS, TIMES)
def test_what_targets_are_called_and_in_which_order_they_come_changes_no_outcome(streams, targets, link, left):
    streams, targets = made(enumerate(streams), enumerate(targets))
    one = decide(streams, targets, link, left)
    assert decide(streams[::-1], targets[::-1], link, left) == one
