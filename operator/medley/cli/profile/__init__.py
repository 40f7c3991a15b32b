"""`medley profile`: make PerformanceProfiles by measuring an endpoint, by fitting step times, or from data sheets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from medley.core.errors import InvalidInputError
from medley.planning.roofline import Dtype, ModelShape

profile = typer.Typer(
    help="Measure, fit or estimate what a model does on a GPU, and write it as a PerformanceProfile.",
    no_args_is_help=True,
)

_Out = Annotated[Path | None, typer.Option("--out", help="File for the manifest, beside standard output.")]
_Class = Annotated[str, typer.Option("--class", help="AcceleratorClass of the profile.")]
_Tp = Annotated[int, typer.Option("--tp", min=1, max=64, help="Tensor-parallel size.")]
_Pp = Annotated[int, typer.Option("--pp", min=1, max=64, help="Pipeline-parallel size.")]
_MaxModelLen = Annotated[int, typer.Option(min=16, help="Longest request, input + output, in tokens.")]
_MaxRunning = Annotated[int, typer.Option(min=1, help="Requests that run at once (vLLM: --max-num-seqs).")]
_MaxBatched = Annotated[int, typer.Option(min=16, help="Tokens of one step (vLLM: --max-num-batched-tokens).")]


@profile.command()
def fit(
    *,
    paths: Annotated[list[Path], typer.Argument(help="Files or folders of step times; see docs/profiles.md.")],
    layers: Annotated[int, typer.Option(min=1, help="Multiply records of one layer by this.")] = 1,
    series: Annotated[str | None, typer.Option(help="Only the series whose name contains this.")] = None,
    model: Annotated[str | None, typer.Option(help="Write a profile of this model.")] = None,
    accelerator_class: _Class = "",
    tensor_parallel: _Tp = 1,
    pipeline_parallel: _Pp = 1,
    kv_tokens: Annotated[int | None, typer.Option(min=16, help="Tokens of KV cache that a replica holds.")] = None,
    max_model_len: _MaxModelLen = 4096,
    max_running: _MaxRunning = 256,
    max_batched_tokens: _MaxBatched = 8192,
    out: _Out = None,
) -> None:
    """Fit step time = f(prompt tokens, batch, context) to measurements; show its errors, write a profile."""
    from medley.cli.profile import fitted  # noqa: PLC0415  # a command pays for its own imports only
    from medley.cli.profile.manifest import Subject  # noqa: PLC0415

    def go() -> int:
        if model is not None and not accelerator_class:
            raise InvalidInputError("--class", "needed for a profile: the name of the AcceleratorClass")
        subject = None
        if model is not None:
            subject = Subject(model, accelerator_class, max_model_len, max_running, tensor_parallel, pipeline_parallel)
        return fitted.run(
            paths,
            layers=layers,
            series=series,
            subject=subject,
            kv_tokens=kv_tokens,
            max_batched_tokens=max_batched_tokens,
            out=out,
        )

    raise typer.Exit(_clearly(go))


@profile.command()
def estimate(
    *,
    model: Annotated[str, typer.Option(help="Name of the model, as LLMService spec.model.name writes it.")],
    parameters: Annotated[float, typer.Option(help="Parameters, in billions (of experts: those one token uses).")],
    layers: Annotated[int, typer.Option(help="num_hidden_layers of config.json.")],
    hidden: Annotated[int, typer.Option(help="hidden_size of config.json.")],
    kv_heads: Annotated[int, typer.Option(help="num_key_value_heads of config.json.")],
    head_size: Annotated[int, typer.Option(help="head_dim of config.json.")] = 128,
    all_parameters: Annotated[float | None, typer.Option(help="Parameters in memory, in billions.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and multiplication.")] = Dtype.BF16,
    kv_dtype: Annotated[Dtype, typer.Option(help="Of the KV cache.")] = Dtype.BF16,
    gpu: Annotated[list[str] | None, typer.Option(help="GPU of the catalogue; again for more. Default: all.")] = None,
    tensor_parallel: _Tp = 1,
    pipeline_parallel: _Pp = 1,
    max_model_len: _MaxModelLen = 4096,
    max_running: _MaxRunning = 256,
    max_batched_tokens: _MaxBatched = 8192,
    catalogue: Annotated[Path | None, typer.Option(help="A catalogue of your own, in the form of gpus.yaml.")] = None,
    out: _Out = None,
) -> None:
    """Estimate step times and KV cache from data sheets, with error bars; write profiles of source Estimated."""
    from medley.cli.profile import estimated  # noqa: PLC0415

    def go() -> int:
        shape = ModelShape(
            parameters=parameters * 1e9,
            layers=layers,
            hidden=hidden,
            kv_heads=kv_heads,
            head_size=head_size,
            dtype=dtype,
            kv_dtype=kv_dtype,
            parameters_in_memory=None if all_parameters is None else all_parameters * 1e9,
        )
        replica = estimated.Replica(
            model, shape, tensor_parallel, pipeline_parallel, max_model_len, max_running, max_batched_tokens
        )
        return estimated.run(replica, gpu or (), own_catalogue=catalogue, out=out)

    raise typer.Exit(_clearly(go))


def _clearly(run: Callable[[], int]) -> int:
    """Run, and turn input that a person must correct into one line and status 2."""
    try:
        return run()
    except InvalidInputError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
