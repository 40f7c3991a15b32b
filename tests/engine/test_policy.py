"""The supervisor's decisions, without processes or a clock."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.engine.phases import NEXT, IllegalMoveError, move
from medley.engine.policy import Alive, Command, Drain, Exited, Limits, Probe, Seen, State, is_ready, step
from medley.engine.samples import Mark, Sample
from medley.wire.assignment import EnginePhase as Phase
from tests.engine.pod import assignment

LIMITS = Limits()
WANTED = assignment("/model")
OTHER = assignment("/model", generation=2, served_model_name="n")
NOW = 1000.0
MARK = Mark(50, 40, 0.1)


def sample(**changes) -> Sample:
    return Sample(
        **{"at": NOW, "running": 0, "waiting": 0, "generated": 50, "prompted": 40, "cache_usage": 0.1} | changes
    )


def state(phase: Phase, **changes) -> State:
    usual = {
        "phase": phase, "since": NOW - 5, "assignment": None if phase is Phase.UNASSIGNED else WANTED, "served": True,
        "mark": MARK, "marked_at": NOW - 1, "busy_at": NOW - 1,
    }  # fmt: skip
    return State(**usual | changes)


def seen(**changes) -> Seen:
    usual = {
        "now": NOW, "wanted": WANTED, "obstacle": "", "process": Alive(), "healthy": True, "sample": sample(),
        "probe": Probe(NOW - 2, NOW - 1),
    }  # fmt: skip
    return Seen(**usual | changes)


GONE = {"process": None, "healthy": False, "sample": None, "probe": None}
SERVING, STARTING, STALLED, DRAINING, STOPPED, FAILED, UNASSIGNED = (
    state(phase)
    for phase in (
        Phase.SERVING, Phase.STARTING, Phase.STALLED, Phase.DRAINING, Phase.STOPPED, Phase.FAILED, Phase.UNASSIGNED,
    )
)  # fmt: skip
SILENT = {"sample": sample(running=2), "probe": None}
ROWS = [
    ("unassigned waits", UNASSIGNED, {"wanted": None, **GONE}, Phase.UNASSIGNED, Command.HOLD),
    ("an assignment starts", UNASSIGNED, GONE, Phase.STARTING, Command.LAUNCH),
    ("not before the volume was looked at", UNASSIGNED, {**GONE, "obstacle": None}, Phase.STARTING, Command.HOLD),
    ("SIGTERM before any assignment", UNASSIGNED, {"wanted": None, **GONE, "terminated_at": NOW}, Phase.STOPPED, Command.HOLD),
    ("a drain keeps it unassigned", UNASSIGNED, {**GONE, "drain": Drain(None)}, Phase.UNASSIGNED, Command.HOLD),
    ("an obstacle fails", STARTING, {**GONE, "obstacle": "no model"}, Phase.FAILED, Command.HOLD),
    ("backoff", replace(STARTING, retry_at=NOW + 1), GONE, Phase.STARTING, Command.HOLD),
    ("not healthy yet", STARTING, {"healthy": False, "probe": None}, Phase.STARTING, Command.HOLD),
    ("healthy is asked for a token", STARTING, {"probe": None}, Phase.STARTING, Command.ASK),
    ("the probe is in flight", STARTING, {"probe": Probe(NOW)}, Phase.STARTING, Command.HOLD),
    ("the probe made none: again", STARTING, {"probe": Probe(NOW - 2, NOW, "500")}, Phase.STARTING, Command.ASK),
    ("the first token", STARTING, {}, Phase.SERVING, Command.HOLD),
    ("never a token", replace(STARTING, launched_at=NOW - 3601), {"probe": None}, Phase.STARTING, Command.KILL),
    ("died while starting", STARTING, {"process": Exited(1, "boom")}, Phase.STARTING, Command.FORGET),
    ("bad usage", replace(STARTING, served=False), {"process": Exited(2, "usage")}, Phase.FAILED, Command.FORGET),
    ("died too often", replace(STARTING, failures=4), {"process": Exited(1, "boom")}, Phase.FAILED, Command.FORGET),
    ("drained while starting", replace(STARTING, served=False), {"drain": Drain(None)}, Phase.DRAINING, Command.TERMINATE),
    ("serves", SERVING, {}, Phase.SERVING, Command.HOLD),
    ("works", SERVING, {"sample": sample(running=9, generated=51)}, Phase.SERVING, Command.HOLD),
    ("a long prefill is work", replace(SERVING, busy_at=NOW - 11), {"sample": sample(running=1, cache_usage=0.2)}, Phase.SERVING, Command.HOLD),
    ("idle: a probe is due", replace(SERVING, marked_at=NOW - 10), {"probe": None}, Phase.SERVING, Command.ASK),
    ("one probe at a time", replace(SERVING, marked_at=NOW - 99), {"probe": Probe(NOW - 1)}, Phase.SERVING, Command.HOLD),
    ("no token, requests running", replace(SERVING, busy_at=NOW - 11), SILENT, Phase.STALLED, Command.HOLD),
    ("metrics went silent", SERVING, {"sample": sample(at=NOW - 11)}, Phase.STALLED, Command.HOLD),
    ("idle, the probe made no token", SERVING, {"probe": Probe(NOW - 1, NOW, "none within 10 s")}, Phase.STALLED, Command.HOLD),
    ("another request made one since", SERVING, {"probe": Probe(NOW - 3, NOW, "none within 10 s")}, Phase.SERVING, Command.HOLD),
    ("died while serving", SERVING, {"process": Exited(-9, "")}, Phase.STARTING, Command.FORGET),
    ("reassigned", SERVING, {"wanted": OTHER}, Phase.DRAINING, Command.HOLD),
    ("only the generation rose", SERVING, {"wanted": assignment("/model", generation=9)}, Phase.SERVING, Command.HOLD),
    ("drained", SERVING, {"drain": Drain(None)}, Phase.DRAINING, Command.HOLD),
    ("SIGTERM", SERVING, {"terminated_at": NOW}, Phase.DRAINING, Command.HOLD),
    ("still stalled", replace(STALLED, busy_at=NOW - 15, marked_at=NOW - 15), {**SILENT, "probe": Probe(NOW - 1)}, Phase.STALLED, Command.HOLD),
    ("stalled for too long", replace(STALLED, since=NOW - 21, marked_at=NOW - 40, busy_at=NOW - 40), SILENT, Phase.STALLED, Command.KILL),
    ("killed", STALLED, {"process": Exited(-9, "")}, Phase.STARTING, Command.FORGET),
    ("recovers by a token", replace(STALLED, marked_at=NOW - 9), {"sample": sample(generated=51, running=1)}, Phase.SERVING, Command.HOLD),
    ("drained while stalled", replace(STALLED, busy_at=NOW - 15), {**SILENT, "drain": Drain(None)}, Phase.DRAINING, Command.TERMINATE),
    ("requests run on", DRAINING, {"sample": sample(running=1), "drain": Drain(None)}, Phase.DRAINING, Command.HOLD),
    ("an old sample proves nothing", DRAINING, {"sample": sample(at=NOW - 6), "drain": Drain(None)}, Phase.DRAINING, Command.HOLD),
    ("quiet, but just now", DRAINING, {"drain": Drain(None)}, Phase.DRAINING, Command.HOLD),
    ("quiet for a second", replace(DRAINING, quiet_at=NOW - 1), {"drain": Drain(None)}, Phase.DRAINING, Command.TERMINATE),
    ("somebody still pulls", replace(DRAINING, quiet_at=NOW - 1), {"drain": Drain(None), "exports": 1}, Phase.DRAINING, Command.HOLD),
    ("whoever pulls at the deadline is too late", replace(DRAINING, quiet_at=NOW - 1), {"drain": Drain(NOW), "exports": 1}, Phase.DRAINING, Command.TERMINATE),
    ("a second before the deadline", DRAINING, {"sample": sample(running=1), "drain": Drain(NOW + 1)}, Phase.DRAINING, Command.CUT),
    ("cut once", replace(DRAINING, cut=True), {"sample": sample(running=1), "drain": Drain(NOW + 0.5)}, Phase.DRAINING, Command.HOLD),
    ("nothing to cut", replace(DRAINING, quiet_at=NOW), {"drain": Drain(NOW + 0.5)}, Phase.DRAINING, Command.HOLD),
    ("the deadline", DRAINING, {"sample": sample(running=1), "drain": Drain(NOW)}, Phase.DRAINING, Command.TERMINATE),
    ("the grace ends", DRAINING, {"sample": sample(running=1), "terminated_at": NOW - 22}, Phase.DRAINING, Command.TERMINATE),
    ("told to end", replace(DRAINING, stopping_at=NOW - 1), {}, Phase.DRAINING, Command.HOLD),
    ("does not end", replace(DRAINING, stopping_at=NOW - 5), {}, Phase.DRAINING, Command.KILL),
    ("ended", DRAINING, {"process": Exited(0, "")}, Phase.DRAINING, Command.FORGET),
    ("buried", DRAINING, GONE, Phase.STOPPED, Command.HOLD),
    ("stays stopped", STOPPED, {**GONE, "drain": Drain(None)}, Phase.STOPPED, Command.HOLD),
    ("assigned again", STOPPED, {**GONE, "wanted": OTHER}, Phase.STARTING, Command.LAUNCH),
    ("ends", STOPPED, {**GONE, "terminated_at": NOW}, Phase.STOPPED, Command.EXIT),
    ("stays failed", FAILED, GONE, Phase.FAILED, Command.HOLD),
    ("a new generation tries again", FAILED, {**GONE, "wanted": OTHER}, Phase.STARTING, Command.LAUNCH),
    ("the obstacle is gone", replace(FAILED, blocked=True), GONE, Phase.STARTING, Command.LAUNCH),
    ("the obstacle stays", replace(FAILED, blocked=True), {**GONE, "obstacle": "no model"}, Phase.FAILED, Command.HOLD),
    ("SIGTERM after a failure", FAILED, {**GONE, "terminated_at": NOW}, Phase.STOPPED, Command.HOLD),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "what", "phase", "command"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_row_of_the_table(before, what, phase, command):
    after, done = step(before, seen(**what), LIMITS)
    assert (after.phase, done) == (phase, command)


def test_every_phase_has_rows_and_every_legal_move_is_one():
    moves = {(row[1].phase, row[3]) for row in ROWS if row[1].phase is not row[3]}
    # By two steps in one tick, a phase may be passed through: never here.
    assert {row[1].phase for row in ROWS} == set(Phase)
    assert moves | {(Phase.SERVING, Phase.FAILED), (Phase.STALLED, Phase.FAILED)} == {
        (now, to) for now, nexts in NEXT.items() for to in nexts
    }


@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.STALLED])
def test_an_engine_that_served_and_died_too_often_fails(phase):
    after, command = step(
        state(phase, failures=4, message="no token for 11 s"), seen(process=Exited(-11, "boom")), LIMITS
    )
    assert (after.phase, command, after.failures) == (Phase.FAILED, Command.FORGET, 5)
    assert "vLLM ended with signal 11: boom (attempt 5)" in after.message


@pytest.mark.parametrize("now", Phase)
@pytest.mark.parametrize("to", Phase)
def test_a_move_that_the_table_has_not_raises(now, to):
    if to in NEXT[now]:
        assert move(now, to) is to
    else:
        with pytest.raises(IllegalMoveError):
            move(now, to)


def test_failures_are_forgotten_after_a_stable_while():
    after, _ = step(state(Phase.SERVING, failures=3, since=NOW - 121), seen(), LIMITS)
    assert after.failures == 0


times = st.floats(NOW - 100, NOW)
samples = st.none() | st.builds(
    Sample, at=times, running=st.integers(0, 3), waiting=st.integers(0, 3), generated=st.integers(48, 52),
    prompted=st.just(40), cache_usage=st.sampled_from([0.0, 0.1]),
)  # fmt: skip
probes = st.none() | st.builds(Probe, asked_at=times, ended_at=st.none() | times, error=st.sampled_from(["", "500"]))
anything_seen = st.builds(
    Seen,
    now=st.just(NOW),
    wanted=st.sampled_from([None, WANTED, OTHER]),
    obstacle=st.sampled_from([None, "", "no model"]),
    drain=st.none() | st.builds(Drain, until=st.none() | times),
    terminated_at=st.none() | times,
    process=st.sampled_from([None, Alive(), Exited(0, ""), Exited(2, "usage"), Exited(-9, "")]),
    healthy=st.booleans(),
    sample=samples,
    probe=probes,
)


@given(st.lists(anything_seen, min_size=1, max_size=12))
def test_whatever_is_seen_moves_are_legal_and_commands_make_sense(views):
    now = State()
    for at, view in enumerate(views):
        # What the supervisor guarantees: a process only after a launch, and answers only from a process.
        launched = now.phase not in {Phase.UNASSIGNED, Phase.STOPPED, Phase.FAILED}
        if not launched or view.process is None:
            view = replace(view, process=None, sample=None, probe=None, healthy=False)  # noqa: PLW2901
        view = replace(view, now=NOW + at)  # noqa: PLW2901
        now, command = step(now, view, LIMITS)
        if command in {Command.ASK, Command.TERMINATE, Command.KILL}:
            assert view.process == Alive()
        if command is Command.LAUNCH:
            assert (view.process, view.terminated_at, view.drain, view.obstacle) == (None, None, None, "")
            assert view.wanted == now.assignment
        if command is Command.EXIT:
            assert (now.phase, view.process) == (Phase.STOPPED, None)
        if is_ready(now, view):
            assert now.phase is Phase.SERVING
            assert (view.terminated_at, view.drain) == (None, None)


@given(st.lists(anything_seen, max_size=6))
def test_sigterm_always_leads_to_the_end(views):
    now, process = State(), None
    for view in views:
        launched = now.phase not in {Phase.UNASSIGNED, Phase.STOPPED, Phase.FAILED}
        process = view.process if launched else None
        answers = {} if process else {"sample": None, "probe": None, "healthy": False}
        now, command = step(now, replace(view, process=process, terminated_at=None, **answers), LIMITS)
        process = Alive() if command is Command.LAUNCH else None if command is Command.FORGET else process
    at = NOW
    while at < NOW + LIMITS.grace_s + 5:
        busy = sample(at=at, running=1, generated=int(at)) if process else None
        now, command = step(now, Seen(now=at, wanted=WANTED, terminated_at=NOW, process=process, sample=busy), LIMITS)
        if command is Command.EXIT:
            return
        if command is Command.KILL:  # it ignores SIGTERM
            process = Exited(-9, "")
        if command is Command.FORGET:
            process = None
        assert command is not Command.LAUNCH
        at += 0.25
    raise AssertionError(now)
