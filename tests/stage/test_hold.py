import subprocess
import sys
from pathlib import Path

import pytest

from e2e.stage import hold
from e2e.stage.processes import StageError

HOLDER = (
    "import signal, sys; from e2e.stage import hold; hold.take('a demo'); print('held', flush=True); signal.pause()"
)


def test_the_stage_has_one_user_and_is_free_when_that_one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StageError, match=rf"in use by a demo \(pid {holder.pid}\): wait for it, or end it"):
            hold.take("another")
        holder.kill()
    hold.take("another")
    hold.take("the same again")
    hold.give_back()
