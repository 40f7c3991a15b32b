"""Where the tokenizer files of the assigned model lie, for routers that mount no model. Called by status.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from medley.wire.assignment import Assignment

FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def tokenizer_file(assignment: Assignment, name: str, environment: Mapping[str, str]) -> Path | None:
    """Return the path of one of `FILES`, or None if the model has no such file (yet)."""
    model = _option(assignment.engine_args, "--tokenizer") or assignment.model
    if Path(model).is_dir():
        found = [Path(model) / name]
    else:
        snapshots = hub_cache(environment) / f"models--{model.replace('/', '--')}" / "snapshots"
        found = sorted(snapshots.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in found if path.is_file()), None)


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Return the folder where Hugging Face keeps what it downloaded."""
    if cache := environment.get("HF_HUB_CACHE"):
        return Path(cache)
    home = environment.get("HF_HOME") or Path(environment.get("HOME", "/")) / ".cache" / "huggingface"
    return Path(home) / "hub"


def _option(arguments: tuple[str, ...], flag: str) -> str:
    """Return the value of a command line option, given as `--flag value` or `--flag=value`; empty if absent."""
    value = ""
    for index, argument in enumerate(arguments):
        name, equals, rest = argument.partition("=")
        if name == flag:
            value = rest if equals else next(iter(arguments[index + 1 : index + 2]), "")
    return value
