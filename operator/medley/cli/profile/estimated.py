"""`medley profile estimate`: profiles from data sheets, with their error bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from medley.cli.profile import catalogue
from medley.cli.profile.manifest import Subject, manifest
from medley.core.errors import InvalidInputError
from medley.core.profiles import Confidence, ProfileSource
from medley.planning.roofline import BEST, USUAL, WORST, Efficiency, ModelShape, Roofline

_BATCH, _CONTEXT = 32, 1000  # of the decoding step that the table shows
_PROMPT = 1000


@dataclass(frozen=True, slots=True)
class Replica:
    """What the estimate is of, beside the GPU."""

    model_name: str
    shape: ModelShape
    tensor_parallel: int
    pipeline_parallel: int
    max_model_len: int
    max_running: int
    max_batched_tokens: int


def run(replica: Replica, gpus: Sequence[str], *, own_catalogue: Path | None, out: Path | None) -> int:
    """Print estimates of the GPUs, and their profiles as manifests. Raises InvalidInputError.

    Of several GPUs those that cannot hold the model are named and left out; of one, that is an error.
    """
    table = Table("GPU", "KV TOKENS", f"DECODE {_BATCH} x {_CONTEXT}", f"PROMPT OF {_PROMPT}", "ERROR", box=None)
    documents = []
    known = catalogue.entries(own_catalogue)
    for name in gpus or tuple(known):
        try:
            document, row = _one(replica, name, own_catalogue)
        except InvalidInputError as error:
            if len(gpus) == 1:
                raise
            table.add_row(name, str(error))
            continue
        documents.append((known[name], document))
        table.add_row(name, *row)
    Console(stderr=True).print(table)
    text = "---\n".join(_commented(entry, document) for entry, document in documents)
    if out is not None:
        try:
            out.write_text(text)
        except OSError as error:
            raise InvalidInputError("--out", f"{out} cannot be written: {error.strerror}") from error
    sys.stdout.write(text)
    return 0 if documents else 1


def _one(replica: Replica, name: str, own_catalogue: Path | None) -> tuple[dict[str, object], tuple[str, ...]]:
    roofline = Roofline(
        catalogue.gpu(name, own_catalogue), replica.shape, replica.tensor_parallel, replica.pipeline_parallel
    )
    latency = roofline.estimate(
        max_running=replica.max_running, max_batched_tokens=replica.max_batched_tokens, longest=replica.max_model_len
    )
    longest = min(replica.max_model_len, latency.model.kv_tokens)
    subject = Subject(
        replica.model_name, name, longest, replica.max_running, replica.tensor_parallel, replica.pipeline_parallel
    )
    document = manifest(subject, ProfileSource.ESTIMATED, confidence=Confidence.LOW, latency=latency)

    def steps(efficiency: Efficiency) -> tuple[float, float]:
        linear = roofline.linear(
            efficiency=efficiency, max_running=replica.max_running, max_batched_tokens=replica.max_batched_tokens
        )
        return linear.step(0, _BATCH, _BATCH * _CONTEXT), linear.step(_PROMPT, 0, 0)

    decode, prompt = zip(*(steps(each) for each in (USUAL, BEST, WORST)), strict=True)
    return document, (
        f"{latency.model.kv_tokens:,}",
        *(f"{1e3 * usual:.1f} ms ({1e3 * best:.1f} to {1e3 * worst:.1f})" for usual, best, worst in (decode, prompt)),
        f"{latency.error:.0%}",
    )


def _commented(entry: catalogue.Entry, document: dict[str, object]) -> str:
    comment = (
        f"# Estimated by medley profile estimate from: {entry.source} ({entry.date}).\n"
        "# Nothing was measured: enough to see a plan, not to sign an SLO. Measure with medley profile measure.\n"
    )
    return comment + yaml.safe_dump(document, sort_keys=False, width=120)
