"""medley's vLLM plugin: what vLLM itself lacks, added from outside. Called by vLLM in each of its processes.

vLLM finds `register` by an entry point, see entry_point.py. It depends on vLLM's
private parts, so it acts only where it was proven: on the versions in `TESTED`, with every symbol as it was. Otherwise
it changes nothing, logs what differs, and the engine's report does without the capability.

No vLLM import at the top: this module is imported before vLLM is ready for it.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import parent_process
from pathlib import Path
from typing import Final

from medley.engine.command import PLUGIN_REPORTS
from medley.engine.plugin.symbols import Symbol, differences
from medley.wire.assignment import Capability

TESTED: Final = ("0.32.",)  # beginnings of vllm.__version__
_LOG: Final = logging.getLogger("vllm.medley")  # below "vllm", so that vLLM's own handlers show it


@dataclass(frozen=True, slots=True)
class Patch:
    """One change to vLLM: where it lives, what it needs unchanged, what it gives."""

    module: str  # has install()
    symbols: tuple[Symbol, ...]
    capability: Capability | None = None
    front_end: bool = False  # the API server needs it, too


_CHECK: Final = (
    Symbol("vllm.exceptions", "VLLMValidationError", "message"),
    Symbol("vllm.v1.engine.input_processor", "InputProcessor.process_inputs", "self request_id prompt params"),
)
_RESUME: Final = (
    Symbol("vllm.v1.request", "Request.from_engine_core_request", "request block_hasher"),
    Symbol("vllm.v1.request", "Request.append_output_token_ids", "self token_ids"),
    Symbol("vllm.v1.structured_output", "StructuredOutputManager._create_grammar", "self request"),
    Symbol(
        "vllm.v1.structured_output.backend_types",
        "StructuredOutputGrammar.accept_tokens",
        "self request_id tokens",
    ),
    Symbol(
        "vllm.v1.worker.gpu_input_batch",
        "CachedRequestState",
        "req_id prompt_token_ids mm_features sampling_params generator block_ids num_computed_tokens output_token_ids",
    ),
    Symbol("vllm.v1.worker.gpu_input_batch", "CachedRequestState.__post_init__", "self"),
    Symbol("vllm.v1.sample.ops.topk_topp_sampler", "TopKTopPSampler.forward_cpu", "self logits generators k p"),
)
_PIPELINE: Final = (Symbol("vllm.v1.worker.cpu_model_runner", "CPUModelRunner.load_model", "self load_dummy_weights"),)
PATCHES: Final = (
    Patch("medley.engine.plugin.resume_check", _CHECK, Capability.RESUME_EXACT, front_end=True),
    Patch("medley.engine.plugin.resume", _RESUME, Capability.RESUME_EXACT),
    Patch("medley.engine.plugin.pipeline", _PIPELINE),
)


def register() -> None:
    """Install what fits this vLLM, and report. vLLM may call it more than once in a process."""
    report = _report()
    if parent_process() is None:  # the API server, where vLLM's arguments become its configuration
        activation = import_module("medley.engine.kv.activation")
        activation.activate(_unknown(import_module("vllm").__version__))
        activation.STANDING.takes_outputs = Capability.RESUME_EXACT in report["capabilities"]
    for line in report["disabled"]:
        _LOG.warning("medley: %s", line)
    if folder := os.environ.get(PLUGIN_REPORTS):
        draft = Path(folder) / f"{os.getpid()}.draft"
        draft.write_text(json.dumps(report), encoding="utf-8")
        draft.rename(Path(folder) / f"{os.getpid()}.json")  # whole or not at all


def _report() -> dict[str, list[str]]:
    """Install what fits; return the capabilities that result and what was left out, for people."""
    if refusal := _refusal(import_module("vllm").__version__):
        return {"capabilities": [], "disabled": [refusal]}
    # The first process is the API server: it would load the model runner for seconds, and never run a model.
    patches = [patch for patch in PATCHES if patch.front_end or parent_process() is not None]
    changed = {patch: differences(patch.symbols) for patch in patches}
    lost = {patch.capability for patch in patches if changed[patch]}  # a capability needs all its patches
    for patch in patches:
        if not changed[patch]:
            import_module(patch.module).install()
    return {
        "capabilities": sorted({patch.capability for patch in patches if patch.capability} - lost),
        "disabled": [f"{patch.module} is disabled: {'; '.join(why)}" for patch, why in changed.items() if why],
    }


def _refusal(version: str) -> str:
    """Return why nothing at all is changed, or nothing."""
    if unknown := _unknown(version):
        return f"{unknown}: nothing is changed"
    if not import_module("vllm.platforms").current_platform.is_cpu():
        return "not yet measured on this platform (CPU only): nothing is changed"
    if import_module("vllm.envs").VLLM_USE_V2_MODEL_RUNNER or import_module("vllm.triton_utils").HAS_TRITON:
        return "not yet measured with Model Runner V2 on the CPU: nothing is changed"
    return ""


def _unknown(version: str) -> str:
    """Return why a version of vLLM is not trusted, or nothing."""
    return (
        ""
        if version.startswith(TESTED)
        else f"vLLM {version} is not one of the tested {', '.join(f'{v}x' for v in TESTED)}"
    )
