"""What to do next with the engine of this pod: `step(state, seen, limits) -> (state, command)`. Read this first.

Called by supervisor.py several times a second and after every event. Pure: the clock is an argument (seconds of any
monotonic clock), and nothing here knows processes or HTTP. It computes from what is seen, never from what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import inf
from typing import Final

from medley.core import grace
from medley.engine.phases import move
from medley.engine.samples import Mark, Sample, mark_of
from medley.wire.assignment import Assignment
from medley.wire.assignment import EnginePhase as Phase

_ENGAGED: Final = frozenset({Phase.STARTING, Phase.SERVING, Phase.STALLED})
BAD_USAGE: Final = 2  # argparse's exit status: the same arguments fail in the same way for ever


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient the supervisor is; seconds where not said otherwise."""

    stall_s: float = 10.0  # no token for so long, with requests running: Stalled
    restart_s: float = 20.0  # Stalled for so long: vLLM is killed and started again
    probe_every_s: float = 10.0  # an idle engine makes a token so often
    start_s: float = 3600.0  # from launch to the first token
    grace_s: float = 25.0  # from SIGTERM to our own end
    cut_s: float = grace.CUT.total_seconds()  # before that, running requests end, each after a whole token
    stop_s: float = grace.STOP.total_seconds()  # from SIGTERM to SIGKILL of vLLM
    reserve_s: float = grace.BURY.total_seconds()  # at the end of the grace, for burying vLLM and ending ourselves
    quiet_s: float = 1.0  # nothing running for so long: drained
    stable_s: float = 120.0  # Serving for so long: earlier failures are forgotten
    failures: int = 5  # in a row: Failed
    backoff_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)  # before the next attempt, by failures so far


@dataclass(frozen=True, slots=True)
class Alive:
    """vLLM runs."""


@dataclass(frozen=True, slots=True)
class Exited:
    """vLLM and all processes of its group ended."""

    code: int  # negative: by that signal
    words: str  # vLLM's own last words, for people


@dataclass(frozen=True, slots=True)
class Probe:
    """The last attempt to make a token: in flight while `ended_at` is None; it made one if `error` is empty."""

    asked_at: float
    ended_at: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """Somebody asked for a drain; `until` None: as long as requests run."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything a step may look at."""

    now: float
    wanted: Assignment | None = None
    obstacle: str | None = None  # why the wanted assignment cannot even be tried; None: not looked yet
    drain: Drain | None = None
    terminated_at: float | None = None  # when SIGTERM came
    process: Alive | Exited | None = None
    healthy: bool = False  # the last /health was answered with 200
    sample: Sample | None = None  # the last counters of this vLLM process
    probe: Probe | None = None  # of this vLLM process
    exports: int = 0  # KV caches that other engines may still be pulling


@dataclass(frozen=True, slots=True)
class State:
    """What a step remembers."""

    phase: Phase = Phase.UNASSIGNED
    since: float = 0.0  # when this phase began
    assignment: Assignment | None = None  # in force
    message: str = ""
    failures: int = 0  # in a row
    restarts: int = 0  # of vLLM after a failure, in all
    retry_at: float = 0.0  # Starting without a process: not before
    launched_at: float = 0.0  # the process that runs
    served: bool = False  # the process that runs has made a token
    blocked: bool = False  # Failed by an obstacle: when it is gone, try again
    mark: Mark | None = None  # the work done, by the last sample
    marked_at: float = 0.0  # when it last grew
    busy_at: float = 0.0  # when it last grew or nothing was running
    quiet_at: float | None = None  # Draining: since when nothing runs
    cut: bool = False  # Draining: vLLM was told to end its requests
    stopping_at: float | None = None  # Draining: when vLLM was told to end


class Command(Enum):
    """What the supervisor is to do now; everything else stays as it is."""

    HOLD = "nothing"
    LAUNCH = "start vLLM with the assignment in force"
    FORGET = "drop the process that exited, with its sample and probe"
    ASK = "have vLLM make a token"
    CUT = "have vLLM end its requests, each after a whole token"
    TERMINATE = "SIGTERM to vLLM"
    KILL = "SIGKILL to vLLM's process group"
    EXIT = "end with status 0"


Step = tuple[State, Command]


def step(state: State, seen: Seen, limits: Limits) -> Step:
    """Return what to remember and the one thing to do now."""
    state = _observed(state, seen)
    if state.phase in _ENGAGED:
        if isinstance(seen.process, Exited):
            return _crashed(state, seen, seen.process, limits)
        if _is_leaving(state, seen):
            return _draining(_enter(state, Phase.DRAINING, seen, _why_leaving(seen)), seen, limits)
        state = replace(state, assignment=seen.wanted)  # perhaps of a higher generation
    return _STEPS[state.phase](state, seen, limits)


def is_ready(state: State, seen: Seen) -> bool:
    """Say whether a router may send requests here."""
    return state.phase is Phase.SERVING and not _is_leaving(state, seen)


def same_engine(one: Assignment | None, other: Assignment | None) -> bool:
    """Say whether two assignments ask for the same engine, whatever their generations."""
    if one is None or other is None:
        return one is other
    return one.model_copy(update={"generation": other.generation}) == other


def _observed(state: State, seen: Seen) -> State:
    """Note the work that the last sample shows."""
    if seen.sample is None:
        return state
    mark = mark_of(seen.sample)
    if mark != state.mark:
        return replace(state, mark=mark, marked_at=seen.now, busy_at=seen.now)
    return state if seen.sample.busy else replace(state, busy_at=seen.now)


def _enter(state: State, phase: Phase, seen: Seen, message: str = "") -> State:
    return replace(state, phase=move(state.phase, phase), since=seen.now, message=message)


def _is_leaving(state: State, seen: Seen) -> bool:
    return seen.terminated_at is not None or seen.drain is not None or not same_engine(state.assignment, seen.wanted)


def _unassigned(state: State, seen: Seen, limits: Limits) -> Step:
    if seen.terminated_at is not None:
        return _enter(state, Phase.STOPPED, seen, "SIGTERM"), Command.HOLD
    return _begin(state, seen, limits)


def _begin(state: State, seen: Seen, limits: Limits) -> Step:
    """Take up the wanted assignment, if there is one, with a clean slate."""
    if seen.wanted is None or seen.drain is not None:
        return state, Command.HOLD
    fresh = replace(state, assignment=seen.wanted, failures=0, retry_at=seen.now, served=False, blocked=False)
    return _starting(_enter(fresh, Phase.STARTING, seen), seen, limits)


def _starting(state: State, seen: Seen, limits: Limits) -> Step:
    if seen.process is None:
        return _launching(state, seen)
    if seen.now - state.launched_at > limits.start_s:
        return replace(state, message=f"no token within {limits.start_s:.0f} s of its start"), Command.KILL
    if not seen.healthy or (seen.probe is not None and seen.probe.ended_at is None):
        return state, Command.HOLD
    if seen.probe is None or seen.probe.error:
        return state, Command.ASK
    return _enter(replace(state, served=True), Phase.SERVING, seen), Command.HOLD


def _launching(state: State, seen: Seen) -> Step:
    if seen.obstacle:
        return _enter(replace(state, blocked=True), Phase.FAILED, seen, seen.obstacle), Command.HOLD
    if seen.obstacle is None or seen.now < state.retry_at:
        return state, Command.HOLD
    launched = replace(state, launched_at=seen.now, served=False, mark=None, marked_at=seen.now, busy_at=seen.now)
    return launched, Command.LAUNCH


def _serving(state: State, seen: Seen, limits: Limits) -> Step:
    if state.failures and seen.now - state.since > limits.stable_s:
        state = replace(state, failures=0)
    if silence := _silence(state, seen, limits):
        return _enter(state, Phase.STALLED, seen, silence), Command.HOLD
    return state, _probe_when_due(state, seen, limits.probe_every_s)


def _stalled(state: State, seen: Seen, limits: Limits) -> Step:
    moved = state.marked_at > state.since or _made_a_token(seen.probe, state.since)
    if moved and not _silence(state, seen, limits):
        return _enter(state, Phase.SERVING, seen), Command.HOLD
    if seen.now - state.since > limits.restart_s:
        return state, Command.KILL
    return state, _probe_when_due(state, seen, limits.stall_s / 4)


def _draining(state: State, seen: Seen, limits: Limits) -> Step:
    if seen.process is None:
        ended = replace(state, quiet_at=None, cut=False, stopping_at=None)
        return _enter(ended, Phase.STOPPED, seen, state.message), Command.HOLD
    if isinstance(seen.process, Exited):
        return state, Command.FORGET
    if state.stopping_at is not None:
        late = seen.now - state.stopping_at >= limits.stop_s
        return state, Command.KILL if late else Command.HOLD
    quiet_at = _quiet_since(state, seen)
    state = replace(state, quiet_at=quiet_at)
    sampled_at = seen.now if seen.sample is None else seen.sample.at
    quiet = quiet_at is not None and sampled_at - quiet_at >= limits.quiet_s
    # Export first, terminate after: a stream that moved may still be pulling what it had here.
    drained = not state.served or (quiet and seen.exports == 0)
    hopeless = bool(_silence(state, seen, limits))  # waiting for an engine that makes no tokens helps nobody
    until = _drain_until(state, seen, limits)
    if drained or hopeless or seen.now >= until:
        return replace(state, stopping_at=seen.now), Command.TERMINATE
    if quiet_at is None and not state.cut and seen.now >= until - limits.cut_s:
        return replace(state, cut=True), Command.CUT
    return state, Command.HOLD


def _quiet_since(state: State, seen: Seen) -> float | None:
    """Return since when samples of this drain show nothing running; an older sample may miss a new request."""
    if seen.sample is None or seen.sample.busy or seen.sample.at < state.since:
        return None
    return seen.sample.at if state.quiet_at is None else state.quiet_at


def _stopped(state: State, seen: Seen, limits: Limits) -> Step:
    if seen.terminated_at is not None:
        return state, Command.EXIT
    return _begin(state, seen, limits)


def _failed(state: State, seen: Seen, limits: Limits) -> Step:
    if seen.terminated_at is not None or seen.drain is not None:
        return _enter(state, Phase.STOPPED, seen, state.message), Command.HOLD
    cleared = state.blocked and seen.obstacle == ""
    if seen.wanted == state.assignment and not cleared:
        return state, Command.HOLD
    return _begin(state, seen, limits)


def _crashed(state: State, seen: Seen, process: Exited, limits: Limits) -> Step:
    """Count a failure and say when to try again, or give up."""
    failures = state.failures + 1
    ended = f"signal {-process.code}" if process.code < 0 else f"status {process.code}"
    before = f"{state.message}; " if state.phase is Phase.STALLED or state.message.startswith("no token") else ""
    said = f": {process.words}" if process.words else ", saying nothing"
    message = f"{before}vLLM ended with {ended}{said}"
    if _is_leaving(state, seen):
        return _enter(replace(state, served=False), Phase.DRAINING, seen, message), Command.FORGET
    if failures >= limits.failures or (process.code == BAD_USAGE and not state.served):
        state = replace(state, failures=failures, served=False)
        return _enter(state, Phase.FAILED, seen, f"{message} (attempt {failures})"), Command.FORGET
    pause = limits.backoff_s[min(failures, len(limits.backoff_s)) - 1]
    message = f"{message} (attempt {failures} of {limits.failures}; the next in {pause:g} s)"
    state = replace(
        state, failures=failures, restarts=state.restarts + 1, retry_at=seen.now + pause, served=False, message=message
    )
    if state.phase is not Phase.STARTING:
        state = _enter(state, Phase.STARTING, seen, message)
    return state, Command.FORGET


def _silence(state: State, seen: Seen, limits: Limits) -> str:
    """Return how we know that the engine makes no tokens, or nothing."""
    if seen.sample is not None and seen.now - seen.sample.at > limits.stall_s:
        return f"vLLM's metrics have not answered for {seen.now - seen.sample.at:.0f} s"
    if seen.sample is not None and seen.sample.busy and seen.now - state.busy_at > limits.stall_s:
        running, waiting = seen.sample.running, seen.sample.waiting
        return f"no token for {seen.now - state.busy_at:.0f} s with {running} requests running and {waiting} waiting"
    probe = seen.probe
    if probe is not None and probe.ended_at is not None and probe.error and state.marked_at <= probe.asked_at:
        return f"an idle engine made no token: {probe.error}"
    return ""


def _made_a_token(probe: Probe | None, since: float) -> bool:
    return probe is not None and probe.ended_at is not None and probe.ended_at > since and not probe.error


def _probe_when_due(state: State, seen: Seen, every_s: float) -> Command:
    probe = seen.probe
    if probe is not None and probe.ended_at is None:
        return Command.HOLD
    last = max(state.marked_at, -inf if probe is None or probe.ended_at is None else probe.ended_at)
    return Command.ASK if seen.now - last >= every_s else Command.HOLD


def _why_leaving(seen: Seen) -> str:
    if seen.terminated_at is not None:
        return "SIGTERM"
    return "drain was asked for" if seen.drain is not None else "another assignment"


def _drain_until(state: State, seen: Seen, limits: Limits) -> float:
    """Return when running requests are cut off."""
    bounds = []
    if seen.terminated_at is not None:
        bounds.append(seen.terminated_at + max(limits.grace_s - limits.stop_s - limits.reserve_s, 0.0))
    if seen.drain is not None:
        bounds.append(inf if seen.drain.until is None else seen.drain.until)
    return min(bounds, default=state.since + limits.grace_s)  # another assignment: as patient as on SIGTERM


_STEPS: Final[Mapping[Phase, Callable[[State, Seen, Limits], Step]]] = {
    Phase.UNASSIGNED: _unassigned,
    Phase.STARTING: _starting,
    Phase.SERVING: _serving,
    Phase.STALLED: _stalled,
    Phase.DRAINING: _draining,
    Phase.STOPPED: _stopped,
    Phase.FAILED: _failed,
}
