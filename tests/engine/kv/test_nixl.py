"""NIXL in place of TCP, on the CPU. `MEDLEY_NIXL` names a folder with the package `nixl` for vLLM's Python."""

import os
import subprocess
from pathlib import Path

import pytest

from e2e.vllm_venv import ensure_venv

HERE = Path(__file__)
FOLDER = os.environ.get("MEDLEY_NIXL")


@pytest.mark.vllm
@pytest.mark.skipif(FOLDER is None, reason="set MEDLEY_NIXL to a folder with nixl 1.5 (uv pip install --target)")
def test_blocks_arrive_by_nixl_in_another_process():
    path = os.pathsep.join([str(HERE.parents[3] / "operator"), str(HERE.parents[3]), str(FOLDER)])
    done = subprocess.run(
        [str(ensure_venv()), str(HERE.with_name("nixl_script.py"))],
        env={"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("carried\n")
