"""Observe, decide, act: drives policy.py over one vLLM process. Called by __main__.py, control.py and status.py.

All decisions are in policy.py. Here: what is seen (wishes from the control port, the process, HTTP answers), and the
carrying out of commands. `tick` never waits; everything slow runs as a task whose result the next tick sees.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, assert_never

from medley.core.errors import EngineError
from medley.engine import command, reports
from medley.engine.client import EngineClient
from medley.engine.policy import Command, Drain, Exited, Probe, Seen, State, is_ready, same_engine, step
from medley.engine.process import EngineProcess
from medley.engine.reaper import reap
from medley.engine.settings import Settings
from medley.wire.assignment import Assignment, Capability, DrainRequest, EnginePhase, EngineReport

TICK_S: Final = 0.25
_LOOK_EVERY_S: Final = 1.0  # health, counters, the volume
_FIRST_TOKEN_S: Final = 120.0  # the first decode of a tensor-parallel engine warms up for seconds


class AssignmentConflictError(EngineError):
    """An assignment that contradicts the one in force."""


class UnusableAssignmentError(EngineError):
    """An assignment that this supervisor can never serve."""


def log(line: str) -> None:
    """Write one line of our own to the pod's log."""
    sys.stdout.write(f"medley| {line}\n")
    sys.stdout.flush()


def _log_engine(line: str) -> None:
    sys.stdout.write(f"vllm| {line}\n")
    sys.stdout.flush()


class Supervisor:
    """The engine of this pod, and what everybody wants of it."""

    def __init__(self, settings: Settings, client: EngineClient, folder: Path, socket_file: Path | None = None) -> None:
        self._settings = settings
        self._client = client
        self._folder = folder
        self._socket_file = socket_file  # where vLLM listens; None: on its port
        self._state = State(since=time.monotonic())
        self._seen = Seen(now=time.monotonic())
        self._process: EngineProcess | None = None
        self._stillborn: Exited | None = None  # the kernel would not start it
        self._version = ""
        self._capabilities: tuple[str, ...] = ()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._looked_at = 0.0
        self.ticked_at = time.monotonic()  # liveness
        self._woken = asyncio.Event()
        self._done = asyncio.Event()

    # What the ports ask for and about

    @property
    def ready(self) -> bool:
        """Whether a router may send requests here."""
        return is_ready(self._state, self._seen)

    @property
    def assignment(self) -> Assignment | None:
        """The assignment in force."""
        return self._state.assignment

    def report(self) -> EngineReport:
        """Return what is."""
        state, sample = self._state, self._seen.sample
        return EngineReport(
            phase=state.phase,
            generation=0 if state.assignment is None else state.assignment.generation,
            running=0 if sample is None else sample.running,
            waiting=0 if sample is None else sample.waiting,
            tokens_generated=0 if sample is None else sample.generated,
            restarts=state.restarts,
            message=state.message,
            engine_version=self._version,
            capabilities=self._capabilities,
        )

    def assign(self, wanted: Assignment) -> EngineReport:
        """Take an assignment; the same one any number of times, an older or contradicting one never."""
        current = self._seen.wanted
        if current is not None and wanted.generation < current.generation:
            raise AssignmentConflictError(
                f"generation {wanted.generation} is older than generation {current.generation} in force; observe again"
            )
        if current is not None and wanted.generation == current.generation:
            if wanted != current:
                raise AssignmentConflictError(
                    f"generation {wanted.generation} is in force with other content; raise the generation"
                )
            return self.report()
        if self._seen.terminated_at is not None:
            raise AssignmentConflictError("this pod is ending (SIGTERM); assign another one")
        if refusal := command.refusal(wanted):
            raise UnusableAssignmentError(refusal)
        keep = same_engine(current, wanted)
        self._seen = replace(self._seen, wanted=wanted, drain=None, obstacle=self._seen.obstacle if keep else None)
        log(f"assigned {wanted.replica}, generation {wanted.generation}, model {wanted.model}")
        return self._woken_report()

    def drain(self, request: DrainRequest) -> EngineReport:
        """Serve what runs, take nothing new; a later request may change the deadline."""
        until = None
        if request.deadline is not None:
            deadline = request.deadline if request.deadline.tzinfo else request.deadline.replace(tzinfo=UTC)
            until = time.monotonic() + (deadline - datetime.now(UTC)).total_seconds()
        self._seen = replace(self._seen, drain=Drain(until))
        return self._woken_report()

    def terminate(self) -> None:
        """SIGTERM came: drain within the grace period and end."""
        if self._seen.terminated_at is None:
            log(f"SIGTERM: draining for at most {self._settings.limits.grace_s:g} s")
            self._seen = replace(self._seen, terminated_at=time.monotonic())
            self._woken_report()

    def _woken_report(self) -> EngineReport:
        self.tick()  # so that the answer, and /readyz, already show it
        self._woken.set()
        return self.report()

    # The loop

    async def run(self) -> None:
        """Tick until it is time to end; leave nothing running."""
        try:
            while not self._done.is_set():
                self.tick()
                self._woken.clear()
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            if self._process is not None:
                await self._process.close()

    def tick(self) -> None:
        """Observe, decide, and carry out one command."""
        now = self.ticked_at = time.monotonic()
        for name in [name for name, task in self._tasks.items() if task.done()]:
            self._tasks.pop(name).result()  # a bug in a task ends the supervisor, and with it the pod
        reap(() if self._process is None else (self._process.pid,))
        process = self._stillborn if self._process is None else self._process.poll()
        self._seen = replace(self._seen, now=now, process=process)
        hurry = self._state.phase in {EnginePhase.STARTING, EnginePhase.DRAINING}  # somebody waits for the answer
        if now - self._looked_at >= (TICK_S if hurry else _LOOK_EVERY_S):
            self._looked_at = now
            self._begin("look", self._look())
        before = self._state
        self._state, order = step(before, self._seen, self._settings.limits)
        if (before.phase, before.message) != (self._state.phase, self._state.message):
            log(f"{before.phase} -> {self._state.phase} {self._state.message}".rstrip())
        self._carry_out(order)

    def _carry_out(self, order: Command) -> None:
        match order:
            case Command.HOLD:
                pass
            case Command.LAUNCH:
                self._launch()
            case Command.FORGET:
                self._forget()
            case Command.ASK:
                probe = Probe(asked_at=self._seen.now)
                self._seen = replace(self._seen, probe=probe)
                assert self._process is not None
                self._begin(f"probe {self._process.pid}", self._ask(self._process, probe))
            case Command.CUT:
                assert self._process is not None
                self._begin(f"cut {self._process.pid}", self._cut())
            case Command.TERMINATE:
                assert self._process is not None
                self._process.terminate()
            case Command.KILL:
                assert self._process is not None
                self._process.kill()
            case Command.EXIT:
                self._done.set()
            case _:
                assert_never(order)

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run something slow beside the loop; one of each name at a time."""
        if name in self._tasks and not self._tasks[name].done():
            work.close()
        else:
            self._tasks[name] = asyncio.get_running_loop().create_task(work)

    def _launch(self) -> None:
        assignment = self._state.assignment
        assert assignment is not None
        settings = self._settings
        reports.clear(self._folder)
        self._version, self._capabilities = "", ()
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)  # of the vLLM before; a new one would not bind
        argv = command.argv(assignment, settings.bind_host, settings.engine_port, self._socket_file)
        log(f"starting {' '.join(argv)}")
        try:
            self._process = EngineProcess(
                argv, command.environment(os.environ, settings.key, self._folder), _log_engine
            )
        except OSError as error:
            self._stillborn = Exited(os.EX_OSERR, f"starting {argv[0]}: {error}")

    def _forget(self) -> None:
        if self._process is not None:
            self._begin(f"close {self._process.pid}", self._process.close())
        self._process = self._stillborn = None
        self._seen = replace(self._seen, process=None, healthy=False, sample=None, probe=None, exports=0)

    async def _look(self) -> None:
        """Ask vLLM how it is; without one, look whether the model is there."""
        process, wanted = self._process, self._seen.wanted
        if process is None:
            if wanted is not None and self._state.phase in {EnginePhase.STARTING, EnginePhase.FAILED}:
                obstacle = await asyncio.to_thread(command.obstacle, wanted)  # a volume over the network may hang
                if self._seen.wanted is wanted:
                    self._seen = replace(self._seen, obstacle=obstacle)
                    self._woken.set()
            return
        healthy, sample = await asyncio.gather(self._client.is_healthy(), self._client.sample())
        leaving = self._state.phase is EnginePhase.DRAINING
        exports = await self._client.exports() if leaving else 0
        if healthy and not self._version:
            self._version = await self._client.version()
            self._capabilities = (*reports.capabilities(self._folder), *await self._carrying())
            if complaints := reports.complaints(self._folder):
                log(f"plugin: {complaints}")
        if self._process is process:  # else the answers are of another one
            # An answer that did not come leaves what was known: it is not zero.
            known = self._seen.exports if exports is None else exports
            self._seen = replace(self._seen, healthy=healthy, sample=sample or self._seen.sample, exports=known)
            self._woken.set()

    async def _cut(self) -> None:
        try:
            await self._client.end_requests()
        except EngineError as error:
            log(f"{error}; they end with vLLM")

    async def _carrying(self) -> tuple[Capability, ...]:
        """Ask vLLM whether it carries KV; say why it does not."""
        state = await self._client.kv_state()
        if state is None or state.capable:
            return () if state is None else (Capability.CARRY_KV,)
        log(f"plugin: KV is not carried: {state.reason}")
        return ()

    async def _ask(self, process: EngineProcess, probe: Probe) -> None:
        served = self._state.served
        error = ""
        try:
            await self._client.make_token(self._settings.limits.stall_s if served else _FIRST_TOKEN_S)
        except EngineError as refused:
            error = str(refused)
        if self._process is process:
            self._seen = replace(self._seen, probe=replace(probe, ended_at=time.monotonic(), error=error))
            self._woken.set()
