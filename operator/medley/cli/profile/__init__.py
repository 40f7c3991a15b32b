"""`medley profile`: make PerformanceProfiles by measuring an endpoint, by fitting step times, or from data sheets."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from medley.core.errors import EngineError, InvalidInputError
from medley.planning.roofline import GIGA, Dtype, ModelShape

profile = typer.Typer(
    help="Measure, fit or estimate what a model does on a GPU, and write it as a PerformanceProfile.",
    no_args_is_help=True,
)

_NO_BILLIONS = 100_000  # nobody serves a hundred trillion parameters: somebody wrote all digits
_Out = Annotated[Path | None, typer.Option("--out", help="File for the manifest, beside standard output.")]
_Class = Annotated[str, typer.Option("--class", help="AcceleratorClass of the profile.")]
_Tp = Annotated[int, typer.Option("--tp", min=1, max=64, help="Tensor-parallel size.")]
_Pp = Annotated[int, typer.Option("--pp", min=1, max=64, help="Pipeline-parallel size.")]
_MaxModelLen = Annotated[
    int, typer.Option(min=16, help="Longest request, input + output, in tokens: that of the services to be planned.")
]
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
    parameters: Annotated[
        float, typer.Option(help="Parameters, in billions: 8.03 (of experts: those one token uses).")
    ],
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
        for option, count in (("--parameters", parameters), ("--all-parameters", all_parameters)):
            if count is not None and count >= _NO_BILLIONS:
                raise InvalidInputError(option, f"is in billions: write {count / GIGA:g} for {count:,.0f} parameters")
        shape = ModelShape(
            parameters=parameters * GIGA,
            layers=layers,
            hidden=hidden,
            kv_heads=kv_heads,
            head_size=head_size,
            dtype=dtype,
            kv_dtype=kv_dtype,
            parameters_in_memory=None if all_parameters is None else all_parameters * GIGA,
        )
        replica = estimated.Replica(
            model, shape, tensor_parallel, pipeline_parallel, max_model_len, max_running, max_batched_tokens
        )
        return estimated.run(replica, gpu or (), own_catalogue=catalogue, out=out)

    raise typer.Exit(_clearly(go))


@profile.command()
def measure(
    *,
    url: Annotated[str, typer.Argument(help="OpenAI endpoint of one replica, such as http://localhost:8000.")],
    accelerator_class: _Class,
    max_running: _MaxRunning,
    model: Annotated[
        str | None, typer.Option(help="Model of the profile. Default: what the endpoint calls it.")
    ] = None,
    served_as: Annotated[str | None, typer.Option(help="What the endpoint calls it, if it serves several.")] = None,
    tensor_parallel: _Tp = 1,
    pipeline_parallel: _Pp = 1,
    max_model_len: Annotated[int | None, typer.Option(min=16, help="Default: what the endpoint says.")] = None,
    inputs: Annotated[str, typer.Option(help="Input tokens, separated by commas.")] = "100,500,2000",
    outputs: Annotated[str, typer.Option(help="Output tokens, separated by commas.")] = "100,500",
    rates: Annotated[
        str, typer.Option(help="Requests/s, separated by commas. Default: rising until it is saturated.")
    ] = "",
    growth: Annotated[float, typer.Option(min=1.05, help="From one rate to the next, where rates rise.")] = 1.5,
    requests: Annotated[int, typer.Option(min=20, help="Measured per rate; 400 for a 99.5th percentile.")] = 200,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before those, not measured.")] = 20,
    most_waiting: Annotated[
        int | None, typer.Option(min=1, help="Requests on the way at which it is saturated. Default: 4 x max-running.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which a request has failed.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and prompts.")] = 0,
    ids: Annotated[str, typer.Option("--token-ids", help="Smallest and largest id of prompts' tokens.")] = "100,2000",
    state: Annotated[Path | None, typer.Option(help="File that keeps what was found, to go on after a stop.")] = None,
    out: _Out = None,
) -> None:
    """Measure a running endpoint over sizes and rates, with open-loop Poisson arrivals; write a profile.

    A key for it is taken from OPENAI_API_KEY.
    """
    from medley.cli.profile import measured  # noqa: PLC0415
    from medley.cli.profile.load import Effort  # noqa: PLC0415

    def go() -> int:
        low, *high = _counts("--token-ids", ids)
        if len(high) != 1 or high[0] <= low:
            raise InvalidInputError("--token-ids", f"expected two ids, the smaller first, got {ids}")
        return measured.run(
            measured.Asked(
                url=url,
                model=model,
                served_as=served_as,
                accelerator_class=accelerator_class,
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
                max_model_len=max_model_len,
                max_running=max_running,
                inputs=_counts("--inputs", inputs),
                outputs=_counts("--outputs", outputs),
                rates=_rates(rates),
                growth=growth,
                effort=Effort(requests, warm_up, most_waiting or 4 * max_running, timeout, seed),
                token_ids=(low, high[0]),
                state=state,
                out=out,
                api_key=os.environ.get("OPENAI_API_KEY"),
            )
        )

    raise typer.Exit(_clearly(go))


def _counts(option: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise InvalidInputError(option, f"expected whole numbers from 1 up, separated by commas, got {text!r}")
    return found


def _rates(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(",") if text)
    except ValueError:
        found = (0.0,)
    if any(not (0 < rate < math.inf) for rate in found):
        raise InvalidInputError("--rates", f"expected requests/s above 0, separated by commas, got {text!r}")
    return found


def _clearly(run: Callable[[], int]) -> int:
    """Run, and say in one line what a person must correct (status 2) or what the endpoint did wrong (status 1)."""
    try:
        return run()
    except InvalidInputError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    except EngineError as error:
        typer.echo(f"error: {error}", err=True)
        return 1
