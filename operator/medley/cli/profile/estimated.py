"""`medley profile estimate`: profiles from data sheets, with their error bars."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.table import Table

from medley.cli import terminal
from medley.cli.profile import catalogue
from medley.cli.profile.manifest import Subject, manifest
from medley.core.errors import InvalidInputError
from medley.core.profiles import Confidence, ProfileSource
from medley.planning.roofline import BEST, GIGA, USUAL, WORST, Efficiency, ModelShape, Roofline

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
    aside = terminal.aside()
    aside.print(table)
    aside.print(
        f"note: for services whose spec.model.maxModelLen is at most {replica.max_model_len:,} (--max-model-len)",
        soft_wrap=True,
        highlight=False,
    )
    text = "---\n".join(_commented(entry, document) for entry, document in documents)
    if documents:
        text = _header(_command(replica, gpus, own_catalogue)) + text
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
    comment = "".join(f"# {', '.join(source.figures)}: {source}\n" for source in entry.sources)
    if entry.unconfirmed:
        comment += f"# Not confirmed: {', '.join(entry.unconfirmed)}\n"
    return comment + yaml.safe_dump(document, sort_keys=False, width=120)


def _command(replica: Replica, gpus: Sequence[str], own_catalogue: Path | None) -> str:
    """Return the command that makes the same again, every option spelt out but what the model does not need."""
    shape = replica.shape
    options = {
        "model": replica.model_name,
        "parameters": f"{shape.parameters / GIGA:g}",
        "all-parameters": None if shape.parameters_in_memory is None else f"{shape.parameters_in_memory / GIGA:g}",
        "layers": shape.layers,
        "hidden": shape.hidden,
        "kv-heads": shape.kv_heads,
        "head-size": shape.head_size,
        "dtype": shape.dtype,
        "kv-dtype": shape.kv_dtype,
        "tp": replica.tensor_parallel,
        "pp": replica.pipeline_parallel,
        "max-model-len": replica.max_model_len,
        "max-running": replica.max_running,
        "max-batched-tokens": replica.max_batched_tokens,
        "catalogue": own_catalogue,
    }
    said = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join(["medley profile estimate", *said, *(f"--gpu {shlex.quote(name)}" for name in gpus)])


def _header(command: str) -> str:
    return (
        f"# {command}\n"
        "# Estimated from data sheets, nothing was measured: enough to see a plan, not to sign an SLO.\n"
        "# Measure your own with medley profile measure.\n"
    )
