import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.stage.processes import Process, StageError, load, run, start, stop, wait_until


def test_a_recycled_pid_is_not_our_process() -> None:
    me = Process.running(os.getpid())
    assert me is not None
    assert me.alive
    assert not Process(me.pid, me.started + 1).alive


def test_a_process_is_found_again_by_its_pid_file_and_not_started_twice(tmp_path: Path) -> None:
    pid_file, log = tmp_path / "pids" / "cat", tmp_path / "logs" / "cat"
    forever = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
    first = start("cat", forever, pid_file=pid_file, log=log)
    assert load(pid_file) == first
    assert start("cat", forever, pid_file=pid_file, log=log) == first
    stop(first)
    assert load(pid_file) is None


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    deaf = [
        sys.executable,
        "-c",
        "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()",
    ]
    process = start("deaf", deaf, pid_file=tmp_path / "pid", log=tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").read_text() == "1\n", timeout_s=30, what="its first word")
    stop(process, grace_s=0.1)
    assert not process.alive


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_half_a_pid_file_names_no_process(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content)
    assert load(tmp_path / "pid") is None


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as child:
        process = Process.running(child.pid)
        assert process is not None
        child.send_signal(signal.SIGKILL)
        wait_until(lambda: not process.alive, timeout_s=30, what="its end")


def test_a_command_that_fails_says_its_last_words() -> None:
    with pytest.raises(StageError, match=r"running sh -c .*: exit 3: sorry"):
        run(["sh", "-c", "echo sorry >&2; exit 3"])


def test_a_command_that_is_not_there_names_the_remedy() -> None:
    with pytest.raises(StageError, match=r"no-such-program is not installed: run `python -m e2e.stage build`"):
        run(["no-such-program"])
