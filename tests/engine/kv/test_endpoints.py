"""The routes in vLLM's API server, with a stand-in for the engine core."""

import json
import subprocess
from pathlib import Path

import pytest

from e2e.vllm_venv import ensure_venv

HERE = Path(__file__)
EXPORT = {"requests": None, "keep_running": False, "lease_s": 30.0}


@pytest.mark.vllm
def test_what_the_routes_take_and_answer():
    done = subprocess.run(
        [str(ensure_venv()), str(HERE.with_name("endpoints_script.py"))],
        env={"PYTHONPATH": str(HERE.parents[3] / "operator")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    status, state = found.pop("not carried: state")
    assert (status, state["mode"], state["capable"], state["reason"]) == (200, "Resume", False, "vllm.part has no step")
    _, unchecked = found.pop("unchecked")
    status, state = found.pop("state")
    assert (status, state["mode"], state["capable"], state["total_blocks"]) == (200, "Auto", True, 7)
    assert (unchecked["takes_outputs"], state["takes_outputs"]) == (False, True)  # the API server has to check them
    status, refused = found.pop("no json")
    assert (status, refused["error"].partition(":")[0]) == (422, "body")
    assert found == {
        "not carried: export": [409, {"error": "KV is not carried here: vllm.part has no step"}],
        "export": [200, {"did": "medley_export"}],
        "empty": [200, {"did": "medley_export"}],
        "renew": [200, {"did": "medley_renew"}],
        "release": [200, {"did": "medley_release"}],
        "field": [422, {"error": "exports.0: Input should be a valid string; more: Extra inputs are not permitted"}],
        "long": [413, {"error": "body: at most 4194304 bytes"}],
        "questions": 3,  # two of clients; one by all the calls that follow
        "calls": [
            ["medley_export", EXPORT | {"requests": ["a"], "lease_s": 3.0}],
            ["medley_export", EXPORT],
            ["medley_renew", {"exports": ["e"], "lease_s": 30.0}],
            ["medley_release", {"exports": ["e"]}],
        ],
        "obstacle": [409, {"error": "KV is not carried here: models with latent attention"}],
    }
