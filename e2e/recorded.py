"""Answers of uninterrupted runs, kept in the cache between test runs: recording them takes longer than any test.

Used by test_service.py; `make demo` records its own, for people to see. What is kept is named after all that decides
the answers (model, vLLM, CPU, prompts and how they are screened), and one of them is asked for again before any is
believed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from e2e.demo import load as load_module
from e2e.demo.load import Load, Reference
from e2e.stage import paths
from medley.demo.model import ensure_model
from medley.demo.vllm_venv import VLLM_VERSION


async def references(load: Load, wanted: int) -> None:
    """Give `load` its references: those that were kept if they still hold, else new ones, which are kept."""
    file = paths.cache() / "references" / f"{_key()}.json"
    kept = _kept(file)
    if len(kept) >= wanted and await load.still_holds(min(kept, key=lambda each: each.max_tokens)):
        load.references = kept[:wanted]
        return
    await load.record_references(wanted)
    _keep(file, load.references)


def _key() -> str:
    prompts = Path(str(load_module.__file__)).read_bytes()
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    parts = (ensure_model().name, VLLM_VERSION, cpu, prompts.decode())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _kept(file: Path) -> tuple[Reference, ...]:
    if not file.exists():
        return ()
    return tuple(
        Reference(each["prompt"], each["text"], tuple(each["tokens"])) for each in json.loads(file.read_text())
    )


def _keep(file: Path, references: Sequence[Reference]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps([dataclasses.asdict(each) for each in references]))
    partial.rename(file)
