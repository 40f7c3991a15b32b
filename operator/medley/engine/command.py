"""From an assignment to vLLM's command line and environment. Called by supervisor.py; pure but for `obstacle`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from medley.core.arguments import SUPERVISORS, reserved
from medley.core.service import MigrationMode
from medley.engine.entry_point import allowed_plugins
from medley.engine.guard import KEY_VARIABLE
from medley.wire.assignment import Assignment

PLUGIN_REPORTS: Final = "MEDLEY_PLUGIN_REPORTS"  # folder: each vLLM process's plugin writes a file there
MIGRATION: Final = "MEDLEY_MIGRATION"  # a MigrationMode; kv/activation.py reads it
GUARD: Final = "medley.engine.guard.KeyGuard"
_SCALE_OUT: Final = "--enable-scale-out"  # /inference/v1/generate and /v1/*/render


def argv(assignment: Assignment, host: str, port: int, socket_file: Path | None = None) -> tuple[str, ...]:
    """Return vLLM's command line for an assignment; its key is not in it. `socket_file`: there instead of a port."""
    where = ("--host", host, "--port", str(port)) if socket_file is None else ("--uds", str(socket_file))
    length = () if assignment.max_model_len is None else ("--max-model-len", str(assignment.max_model_len))
    return (
        # Not `vllm serve`: builds for the CPU under another distribution name break that command.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", assignment.model),
        *("--served-model-name", assignment.served_model_name),
        *where,
        *("--tensor-parallel-size", str(assignment.tensor_parallel)),
        *("--pipeline-parallel-size", str(assignment.pipeline_parallel)),
        *length,
        _SCALE_OUT,
        *("--middleware", GUARD),
        *("--disable-access-log-for-endpoints", "/health,/metrics"),  # we ask for them every second
        *assignment.engine_args,
    )


def environment(inherited: Mapping[str, str], key: str, folder: Path) -> dict[str, str]:
    """Return vLLM's environment: ours, the key, and a folder where it finds its plugin and the plugin reports."""
    path = os.pathsep.join(filter(None, (str(folder), inherited.get("PYTHONPATH"))))
    own = {
        KEY_VARIABLE: key,
        PLUGIN_REPORTS: str(folder),
        "PYTHONPATH": path,
        "VLLM_PLUGINS": allowed_plugins(inherited.get("VLLM_PLUGINS")),
    }
    return {"VLLM_NO_USAGE_STATS": "1", MIGRATION: MigrationMode.AUTO.value, **inherited, **own}


def refusal(assignment: Assignment) -> str:
    """Return why this supervisor cannot take an assignment whatever the pod holds, or nothing."""
    if assignment.rank != 0 or assignment.head_address is not None or len(assignment.peers) > 1:
        return "rank, head_address, peers: this version serves a replica from one pod; choose a shape of one node"
    for argument in assignment.engine_args:
        if "\0" in argument:
            return "spec.engine.args: an argument holds a NUL character; remove it"
        name = reserved(argument, SUPERVISORS)
        if name is not None:
            return f"spec.engine.args: {name} is not allowed, {SUPERVISORS[name]}"
    for name in ("model", "served_model_name"):
        value = getattr(assignment, name)
        if not value or value.startswith("-") or not value.isprintable():
            return f"{name}: expected a name or path, got {value!r}"
    return ""


def obstacle(assignment: Assignment) -> str:
    """Look at the volume: return why the model is not there, or nothing. A name on a hub is vLLM's to find."""
    path = Path(assignment.model)
    if not path.is_absolute():
        return ""
    if not path.exists():
        return f"spec.model.source.pvc.path: {path} not found in the volume; put the model there or correct the path"
    if not (path / "config.json").exists() and path.is_dir():
        return f"spec.model.source.pvc.path: {path} has no config.json; expected a model in Hugging Face format"
    return ""
