"""The layout of staging for accelerators, on the CPU: nothing here says how it does on a GPU."""

import subprocess
from pathlib import Path

import pytest

from e2e.vllm_venv import ensure_venv

HERE = Path(__file__)


@pytest.mark.vllm
def test_staging_gives_and_takes_the_same_bytes_as_the_cache_itself():
    done = subprocess.run(
        [str(ensure_venv()), str(HERE.with_name("staged_script.py"))],
        env={"PYTHONPATH": str(HERE.parents[3] / "operator"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "expected the heads and positions of a block in one piece"), (
        done.stderr
    )
