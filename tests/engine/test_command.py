"""What an assignment becomes, and what of it is refused."""

import sys
from pathlib import Path

import pytest

from medley.engine.command import argv, environment, obstacle, refusal
from medley.engine.tokenizer import tokenizer_file
from tests.engine.pod import assignment


def test_the_command_line_is_whole_and_has_no_key():
    wanted = assignment(
        "/models/llama", "--dtype", "bfloat16", max_model_len=4096, tensor_parallel=2, pipeline_parallel=3
    )
    assert argv(wanted, "0.0.0.0", 8000) == (
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/llama",
        "--served-model-name", "m", "--host", "0.0.0.0", "--port", "8000", "--tensor-parallel-size", "2",
        "--pipeline-parallel-size", "3", "--max-model-len", "4096", "--enable-scale-out",
        "--middleware", "medley.engine.guard.KeyGuard", "--disable-access-log-for-endpoints", "/health,/metrics",
        "--dtype", "bfloat16",
    )  # fmt: skip


def test_behind_tls_vllm_has_a_socket_file_and_no_port():
    assert argv(assignment("m"), "0.0.0.0", 8000, Path("/tmp/x/vllm.sock"))[5:9] == (
        "--served-model-name", "m", "--uds", "/tmp/x/vllm.sock"
    )  # fmt: skip


def test_the_environment_carries_key_and_plugin():
    assert environment({"PYTHONPATH": "/medley", "VLLM_NO_USAGE_STATS": "0", "A": "b"}, "key", Path("/tmp/x")) == {
        "A": "b",
        "VLLM_NO_USAGE_STATS": "0",
        "VLLM_API_KEY": "key",
        "MEDLEY_PLUGIN_REPORTS": "/tmp/x",
        "PYTHONPATH": "/tmp/x:/medley",
        "VLLM_PLUGINS": "medley,medley_kv",
        "MEDLEY_MIGRATION": "Auto",
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--port", "9"), "--port"),
        (("--api_key=x",), "--api-key"),
        (("--tensor-parallel", "4"), "--tensor-parallel-size"),  # argparse takes beginnings
        (("-tp", "4"), "-tp"),
        (("--disable-log-stats",), "--disable-log-stats"),
        (("--config=x.yaml",), "--config"),
    ],
)
def test_arguments_that_are_the_supervisors_are_refused(arguments, named):
    assert refusal(assignment("/m", *arguments)).startswith(f"spec.engine.args: {named} is not allowed")


@pytest.mark.parametrize("arguments", [(), ("--dtype", "float16"), ("--enforce-eager", "-O0"), ("--", "x")])
def test_other_arguments_pass(arguments):
    assert refusal(assignment("org/model", *arguments)) == ""


@pytest.mark.parametrize(
    "change",
    [{"rank": 1}, {"head_address": "10.0.0.1"}, {"peers": ("a", "b")}, {"model": ""}, {"model": "--help"},
     {"served_model_name": "a\nb"}, {"engine_args": ("a\0b",)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_one_pod_cannot_serve_is_refused_by_name(change):
    said = refusal(assignment("/m").model_copy(update=change))
    assert next(iter(change)).replace("engine_args", "spec.engine.args") in said


def test_obstacles_in_the_volume(tmp_path):
    missing = tmp_path / "missing"
    assert obstacle(assignment(str(missing))).startswith(
        f"spec.model.source.pvc.path: {missing} not found in the volume"
    )
    assert "has no config.json" in obstacle(assignment(str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    assert obstacle(assignment(str(tmp_path))) == ""
    assert obstacle(assignment("meta-llama/Llama-2-7b-hf")) == ""


def test_the_tokenizer_is_found_in_a_folder_in_a_hub_cache_and_elsewhere(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    home = {"HF_HOME": str(tmp_path)}
    assert tokenizer_file(assignment("org/name"), "tokenizer.json", home) == snapshot / "tokenizer.json"
    assert tokenizer_file(assignment(str(snapshot)), "tokenizer.json", {}) == snapshot / "tokenizer.json"
    elsewhere = assignment("org/other", f"--tokenizer={snapshot}")
    assert tokenizer_file(elsewhere, "tokenizer.json", home) == snapshot / "tokenizer.json"
    assert tokenizer_file(assignment("org/name"), "tokenizer_config.json", home) is None
    assert tokenizer_file(assignment("org/other"), "tokenizer.json", home) is None
