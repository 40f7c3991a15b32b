"""NIXL in place of TCP, on the CPU, between processes without a model."""

import os
import subprocess
from pathlib import Path

import pytest

from e2e.vllm_venv import ensure_venv

HERE = Path(__file__)


@pytest.mark.vllm
@pytest.mark.parametrize("ways", ["all", "tcp"], ids=["as by default", "over TCP"])
def test_blocks_arrive_by_nixl_in_another_process(nixl, ways):
    path = os.pathsep.join([str(HERE.parents[3] / "operator"), str(HERE.parents[3]), str(nixl)])
    done = subprocess.run(
        [str(ensure_venv()), str(HERE.with_name("nixl_script.py"))],
        env={"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PATH": os.environ["PATH"], "UCX_TLS": ways},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("carried\n")
