"""Background processes that outlive the command that starts them, and are found again after a crash.

Used by everything in the stage that runs a server. A process is known by its pid *and* its start time, so that a
recycled pid is never mistaken for ours.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


class StageError(Exception):
    """The stage cannot do what was asked; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine: `started` is its start time in clock ticks since boot, from /proc/PID/stat."""

    pid: int
    started: int

    @classmethod
    def running(cls, pid: int) -> "Process | None":
        """Return the live process with this pid, or None if there is none (a zombie counts as none)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *fields = stat[stat.rindex(")") + 2 :].split()
        return None if state in "ZX" else cls(pid, int(fields[18]))

    @property
    def alive(self) -> bool:
        """Say whether this very process still runs."""
        return Process.running(self.pid) == self

    def kill(self, sent: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, if the process still is the one we started."""
        if self.alive:
            try:
                os.kill(self.pid, sent)
            except ProcessLookupError:
                return


def load(pid_file: Path) -> Process | None:
    """Return the live process that a pid file names, or None: no file, half a file, or a process that ended."""
    try:
        known = Process(**json.loads(pid_file.read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return known if known.alive else None


def start(
    name: str,
    command: Sequence[str | Path],
    *,
    pid_file: Path,
    log: Path,
    env: Mapping[str, str] | None = None,
    cgroups: Sequence[Path] = (),
    niceness: int | None = None,
) -> Process:
    """Start a server unless the pid file names one that runs; append its output to `log`.

    The process joins `cgroups` before it executes anything, so that even one whose pid file was never written is found.
    `niceness` is -20 (goes before all others) to 19; None: ours.
    """
    if (known := load(pid_file)) is not None:
        return known
    for parent in (pid_file.parent, log.parent):
        parent.mkdir(parents=True, exist_ok=True)
    joins = "".join(f'echo $$ > "{group / "cgroup.procs"}" && ' for group in cgroups)
    change = 0 if niceness is None else niceness - os.getpriority(os.PRIO_PROCESS, 0)
    with log.open("ab") as out, Path(os.devnull).open("rb") as nothing:
        pid = os.posix_spawn(  # not Popen, which wants to be kept until the child ends
            "/bin/sh",
            ["/bin/sh", "-c", f'{joins}exec nice -n {change} "$@"', name, *map(str, command)],
            {**os.environ, **(env or {})},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, out.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, out.fileno(), 2),
                # A lock that our caller holds by an open file must not live as long as the server.
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited()),
            ],
            setsid=True,
        )
    process = Process.running(pid)
    if process is None:
        raise StageError(f"{name} ended at once: read {log}")
    partial = pid_file.with_suffix(".new")
    partial.write_text(json.dumps(asdict(process)))
    partial.replace(pid_file)
    return process


def _inherited() -> list[int]:
    """Return the open files, beyond the standard three, that a child would get."""
    inherited = []
    for file in Path("/proc/self/fd").iterdir():
        number = int(file.name)
        with contextlib.suppress(OSError):  # the file of this very listing is closed by now
            if number > 2 and os.get_inheritable(number):
                inherited.append(number)
    return inherited


def stop(process: Process, *, grace_s: float = 5.0) -> None:
    """End a process: SIGTERM, then SIGKILL after `grace_s`; return when it is gone."""
    process.kill(signal.SIGTERM)
    try:
        wait_until(lambda: _reaped(process), timeout_s=grace_s, what="the end of a process")
    except StageError:
        process.kill()
        wait_until(lambda: _reaped(process), timeout_s=10, what=f"the end of process {process.pid}")


def _reaped(process: Process) -> bool:
    """Say whether the process is gone; collect it if it was our child."""
    with contextlib.suppress(ChildProcessError):  # somebody else's child: its parent, or init, collects it
        os.waitpid(process.pid, os.WNOHANG)
    return not process.alive


def wait_until(ready: Callable[[], bool], *, timeout_s: float, what: str, every_s: float = 0.05) -> None:
    """Poll `ready` until it holds; raise StageError naming `what` if it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise StageError(f"waiting for {what}: not there after {timeout_s:g} s")
        time.sleep(every_s)


def run(command: Sequence[str | Path], *, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed; raise StageError with its last words if it fails."""
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise StageError(f"{words[0]} is not installed: run `python -m e2e.stage build`")
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode != 0:
        raise StageError(
            f"running {' '.join(words[:6])}: exit {done.returncode}: {(done.stderr or done.stdout)[-2000:]}"
        )
    return done.stdout
