"""Records of departures: whole values from what is observed, through every phase, and again after any crash."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core import names
from medley.core.accelerators import Market
from medley.core.migrations import How, Left, MigrationMethod, MigrationPhase
from medley.core.notices import Cause, Notice, NoticeSource
from medley.planning.fleet import ReplicaPhase
from medley.planning.records import KEPT, PATIENCE, Heard, Move, Progress, Record, begun, heard_of, records
from medley.testing.builders import NOW, observed, offering, replica, waiting

LEAVING, OTHER = replica(n=0), replica(n=1)
NODE = LEAVING.node
DEADLINE = NOW + timedelta(seconds=120)
NOTICE = Notice(NODE, DEADLINE, NoticeSource.KARPENTER_TAINT, Cause.RECLAIMED)
NAME = names.migration("chat", NODE, LEAVING.uid, 0)
QUIET = Heard(routers=2)
LATER = NOW + timedelta(seconds=30)


PLANNED = Progress(MigrationPhase.PLANNED)


def record(progress=PLANNED, **changes):
    """The record of NOTICE as it stands in the cluster."""
    written = Record(
        NAME, NODE, DEADLINE, NoticeSource.KARPENTER_TAINT, Cause.RECLAIMED, (LEAVING.name,), NOW, "uid", progress
    )
    return replace(written, **changes)


def heard(*, running=0, routers=2, silent=0, **left):
    """What routers say of LEAVING."""
    streams = {(LEAVING.name, How(how)): number for how, number in left.items()}
    return Heard(streams, {LEAVING.name: running} if running else {}, routers, silent)


def noticed(*replicas, **changes):
    return observed(replicas=replicas or (LEAVING, OTHER), notices=(NOTICE,), **changes)


def of(found):
    """The one record that should be there."""
    (only,) = found.wanted
    assert found.expired == ()
    return only


def moves(**streams):
    return tuple(sorted(Move(LEAVING.name, MigrationMethod[how], number) for how, number in streams.items()))


def test_a_notice_begins_a_record_and_what_was_asked_for_is_its_replacement():
    new = begun(noticed(), (), NOW)
    assert new == (record(Progress(), uid=""),)
    found = of(records(noticed(), new, QUIET, ["chat-l4-s-a-2", "chat-l4-s-a-3"], NOW))
    assert found == record(Progress(MigrationPhase.PLANNED, ("chat-l4-s-a-2",), (), 0), uid="")
    assert len(NAME) <= 63


def test_replicas_of_one_node_share_a_record_and_nodes_do_not():
    both = (LEAVING, replica(n=2, node=NODE), replica(n=3))
    there = (NOTICE, Notice(both[2].node, NOW, NoticeSource.NODE_GONE, Cause.UNKNOWN))
    found = begun(observed(replicas=both, notices=there), (), NOW)
    assert [(each.node, each.replicas, each.deadline) for each in found] == [
        (NODE, (both[0].name, both[1].name), DEADLINE),
        (both[2].node, (both[2].name,), NOW),
    ]


@pytest.mark.parametrize("phase", [None, MigrationPhase.PLANNED, MigrationPhase.MOVING, MigrationPhase.COMPLETED])
def test_a_record_that_is_there_covers_its_replicas_and_keeps_the_first_deadline(phase):
    sliding = replace(NOTICE, deadline=DEADLINE + timedelta(minutes=1), source=NoticeSource.KARPENTER_NODECLAIM)
    now = observed(replicas=(LEAVING,), notices=(sliding,))
    assert begun(now, (record(Progress(phase)),), LATER) == ()


@pytest.mark.parametrize(
    ("market", "source", "number"),
    [
        (Market.ON_DEMAND, NoticeSource.KARPENTER_TAINT, 0),
        (Market.ON_DEMAND, NoticeSource.NODE_NOT_READY, 1),
        (Market.SPOT, NoticeSource.KARPENTER_TAINT, 1),
    ],
)
def test_a_node_that_goes_as_medley_left_it_has_no_record(market, source, number):
    leaving = replica(offering(market), leaving=True, node=NODE)
    notice = replace(NOTICE, source=source)
    assert len(begun(observed(replicas=(leaving,), notices=(notice,)), (), NOW)) == number


def test_another_replica_of_the_same_name_and_node_gets_a_record_of_its_own():
    heir = replica(n=0, uid="heir", created_at=NOW + timedelta(hours=1))
    ended = record(Progress(MigrationPhase.COMPLETED, completed_at=LATER))
    found = begun(noticed(heir), (ended,), NOW + timedelta(hours=2))
    assert [each.name for each in found] == [names.migration("chat", NODE, "heir", 0)]


@pytest.mark.parametrize(
    ("said", "progress"),
    [
        pytest.param(heard(running=3), Progress(MigrationPhase.PLANNED, lost=0), id="no stream has left"),
        pytest.param(heard(underway=1), Progress(MigrationPhase.MOVING, lost=0), id="one is under way"),
        pytest.param(
            heard(finished=1, carried=2, refilled=3, resumed=4, running=1),
            Progress(MigrationPhase.MOVING, moves=moves(FINISH=1, CARRY=2, REPREFILL=7), lost=0),
            id="some left",
        ),
        pytest.param(heard(lost=2), Progress(MigrationPhase.MOVING, lost=2), id="some are lost"),
        pytest.param(
            heard(silent=1, carried=2),
            Progress(MigrationPhase.MOVING, moves=moves(CARRY=2), lost=0, message="1 of 2 routers could not be read"),
            id="one router is silent",
        ),
        pytest.param(
            heard(silent=2),
            Progress(MigrationPhase.PLANNED, message="2 of 2 routers could not be read"),
            id="unknown is not zero",
        ),
        pytest.param(
            Heard(), Progress(MigrationPhase.PLANNED, message="there was no router to ask"), id="there is no router"
        ),
        pytest.param(None, Progress(MigrationPhase.PLANNED), id="routers were not asked"),
    ],
)
def test_while_the_replica_is_there(said, progress):
    assert of(records(noticed(), (record(),), said, (), LATER)) == record(progress)


def test_counts_never_fall_when_a_router_begins_anew():
    before = Progress(MigrationPhase.MOVING, (), moves(CARRY=5, FINISH=1), 1)
    after = of(records(noticed(), (record(before),), heard(carried=2, refilled=1, running=1), (), LATER))
    assert after.progress == replace(before, moves=moves(CARRY=5, FINISH=1, REPREFILL=1))


@pytest.mark.parametrize(
    ("replicas", "said", "progress"),
    [
        pytest.param(
            (OTHER,),
            heard(finished=1, carried=2, refilled=3),
            Progress(
                MigrationPhase.COMPLETED,
                moves=moves(FINISH=1, CARRY=2, REPREFILL=3),
                lost=0,
                message="streams: 1 finished, 2 carried with their KV cache, 3 computed again",
            ),
            id="gone",
        ),
        pytest.param(
            (replace(LEAVING, leaving=True), OTHER),
            QUIET,
            Progress(MigrationPhase.COMPLETED, lost=0, message="no stream was there"),
            id="on its way out and empty",
        ),
        pytest.param(
            (replace(LEAVING, phase=ReplicaPhase.ENDED), OTHER),
            QUIET,
            Progress(MigrationPhase.COMPLETED, lost=0, message="no stream was there"),
            id="ended",
        ),
        pytest.param(
            (OTHER,),
            heard(carried=1, lost=2),
            Progress(
                MigrationPhase.FAILED,
                moves=moves(CARRY=1),
                lost=2,
                message="streams: 1 carried with their KV cache, 2 lost",
            ),
            id="streams were lost",
        ),
    ],
)
def test_when_the_replica_holds_no_request_any_more_it_is_over_and_stays_so(replicas, said, progress):
    over = of(records(noticed(*replicas), (record(),), said, (), LATER))
    assert over == record(replace(progress, completed_at=LATER))
    assert of(records(noticed(*replicas), (over,), heard(lost=9), ("x",), LATER + PATIENCE)) == over


@pytest.mark.parametrize(
    ("replicas", "said"),
    [
        pytest.param((OTHER,), heard(underway=1), id="gone, and a stream is nowhere yet"),
        pytest.param((OTHER,), heard(silent=1), id="gone, and a router did not answer"),
        pytest.param((OTHER,), None, id="gone, and routers were not asked"),
        pytest.param((replace(LEAVING, leaving=True), OTHER), heard(running=1), id="on its way out with a request"),
    ],
)
def test_it_is_not_over_before(replicas, said):
    found = of(records(noticed(*replicas), (record(),), said, (), LATER))
    assert found.is_open


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            heard(silent=2),
            "the replicas are gone; 2 of 2 routers could not be read: what became of their streams is not known",
        ),
        (
            Heard(),
            "the replicas are gone; there was no router to ask: what became of their streams is not known",
        ),
    ],
)
def test_routers_that_cannot_be_read_are_waited_for_and_then_left_out(said, message):
    due = DEADLINE + PATIENCE
    assert of(records(noticed(OTHER), (record(),), said, (), due - timedelta(seconds=1))).is_open
    found = of(records(noticed(OTHER), (record(),), said, (), due))
    assert found.progress == Progress(MigrationPhase.COMPLETED, completed_at=due, message=message)


def test_what_one_of_two_routers_said_is_kept_and_called_a_part():
    due = DEADLINE + PATIENCE
    found = of(records(noticed(OTHER), (record(),), heard(silent=1, carried=2), (), due))
    assert found.progress.moves == moves(CARRY=2)
    said = "streams: 2 carried with their KV cache, as far as is known; 1 of 2 routers could not be read"
    assert found.progress.message == said


def test_a_notice_that_is_taken_back_is_withdrawn_and_one_given_again_is_another():
    calm = observed(replicas=(LEAVING, OTHER))
    assert of(records(calm, (record(),), QUIET, (), NOW + PATIENCE - timedelta(seconds=1))).is_open
    found = of(records(calm, (record(),), QUIET, (), NOW + PATIENCE))
    said = "the notice was taken back: the replicas stay"
    assert found.progress == Progress(MigrationPhase.WITHDRAWN, (), (), 0, NOW + PATIENCE, said)
    again = begun(noticed(), (found,), NOW + timedelta(hours=1))
    assert [each.name for each in again] == [names.migration("chat", NODE, LEAVING.uid, 1)]


def test_after_a_crash_what_is_on_its_way_is_the_replacement_and_nobody_s_twice():
    coming = waiting(n=2)
    other = replace(OTHER, node="other")
    two = (NOTICE, Notice("other", NOW, NoticeSource.NODE_GONE, Cause.UNKNOWN))
    seen = observed(replicas=(LEAVING, other, coming), notices=two)
    found = records(seen, begun(seen, (), NOW), QUIET, (), NOW)
    assert sorted(each.progress.replacements for each in found.wanted) == [(), (coming.name,)]
    # Once it replaced somebody, it replaces nobody else.
    ended = record(Progress(MigrationPhase.COMPLETED, (coming.name,), completed_at=LATER), replicas=("gone",))
    seen = noticed(LEAVING, coming)
    fresh = records(seen, (ended, *begun(seen, (ended,), LATER)), QUIET, (), LATER).wanted
    assert [each.progress.replacements for each in fresh if each.is_open] == [()]


def test_a_record_goes_a_week_after_its_end():
    ended = record(Progress(MigrationPhase.COMPLETED, completed_at=LATER))
    assert records(observed(), (ended,), None, (), LATER + KEPT - timedelta(seconds=1)).wanted == (ended,)
    gone = records(observed(), (ended,), None, (), LATER + KEPT)
    assert (gone.wanted, gone.expired) == ((), (ended,))


def test_routers_are_heard_together():
    one = Left({("a", How.CARRIED): 2, ("a", How.LOST): 1}, {"a": 3})
    two = Left({("a", How.CARRIED): 1, ("b", How.FINISHED): 1}, {"b": 1})
    assert heard_of([one, None, two]) == Heard(
        {("a", How.CARRIED): 3, ("a", How.LOST): 1, ("b", How.FINISHED): 1}, {"a": 3, "b": 1}, routers=3, silent=1
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from([(LEAVING, OTHER), (replace(LEAVING, leaving=True), OTHER), (OTHER,)]),
        st.booleans(),  # the notice stands
        st.none() | st.builds(heard, running=st.integers(0, 1), silent=st.integers(0, 2), carried=st.integers(0, 3), underway=st.integers(0, 1), lost=st.integers(0, 1)),
        st.integers(0, 200),
    ),
    max_size=8,
)  # fmt: skip


@given(STEPS)
def test_whatever_is_seen_records_stand_still_by_themselves_and_counts_only_grow(steps):
    known, now = (), NOW
    for replicas, stands, said, seconds in steps:
        now += timedelta(seconds=seconds)
        seen = observed(replicas=replicas, notices=(NOTICE,) if stands else ())
        before = {each.name: each for each in known}
        known = records(seen, (*known, *begun(seen, known, now)), said, (), now).wanted
        assert begun(seen, known, now) == ()
        assert records(seen, known, said, (), now).wanted == known  # so an idle pass writes nothing
        assert len({each.name for each in known}) == len(known)
        assert sum(each.is_open for each in known) <= 1
        for each in known:
            was = before.get(each.name)
            if was is not None and not was.is_open:
                assert each == was
            elif was is not None:
                assert sum(one.streams for one in each.progress.moves) >= sum(one.streams for one in was.progress.moves)
                assert (each.deadline, each.replicas) == (was.deadline, was.replicas)
