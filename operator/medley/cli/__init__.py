"""The command `medley`. Parses arguments and hands over; each part is imported only when its command runs.

    medley plan -f service.yaml         what it would run on and cost          (planned.py; --diff: diff.py)
    medley explain -f service.yaml      why, and what would change it          (explained.py)
    medley operator [release]           the operator; let go of services       (app.run_operator, run_operator_release)
    medley router [...]                 the front door                         (app.run_router)
    medley engine                       the supervisor in an engine pod        (medley.engine.__main__)
    medley profile measure|fit|estimate what a model does on a GPU             (profile/)
    medley demo [...]                   serve, take an engine away, show       (app.run_demo)

Exit status: 0 done, 1 the answer is no, 2 the input must be corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import typer.core
from typer.exceptions import TyperException

from medley import __version__
from medley.cli.profile import profile
from medley.core.errors import InvalidInputError
from medley.core.units import duration
from medley.planning.arrivals import RateChoice

if TYPE_CHECKING:
    from medley.cli.inputs import Options

Result = TypeVar("Result")


# Commands that need another extra than `tool`.
_EXTRAS = {"operator": "operator", "router": "router", "demo": "router"}


class _Commands(typer.core.TyperGroup):
    """Says in one line what a command lacks: an option, or a package that medley is installed without."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "medley":
                raise
            extra = _EXTRAS.get(ctx.invoked_subcommand or "", "tool")
            said = f"error: {error.name} is missing: install medley with its extra `{extra}` (pip install '.[{extra}]')"
            typer.echo(said, err=True)
            raise typer.Exit(2) from error
        except TyperException as error:
            message = error.format_message().rstrip(".")
            if not message or "\n" in message:
                raise  # the help, of a command without arguments
            command = getattr(getattr(error, "ctx", None), "command_path", ctx.command_path)
            typer.echo(f"error: {message[0].lower()}{message[1:]}; see {command} --help", err=True)
            raise typer.Exit(2) from error


main = typer.Typer(
    cls=_Commands,
    name="medley",
    help="Serve a large language model on the cheapest mix of GPUs that keeps a latency promise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
operator = typer.Typer(help="Run the operator.", invoke_without_command=True)
main.add_typer(operator, name="operator")
main.add_typer(profile, name="profile")

# Parts read their own arguments, so that they can be started without this command too.
_OWN_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class Output(StrEnum):
    """How a plan is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def _version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"medley {__version__}")
        raise typer.Exit


@main.callback()
def root(
    *,
    version: Annotated[bool, typer.Option("--version", callback=lambda value: _version(wanted=value))] = False,
) -> None:
    """Serve a large language model on the cheapest mix of GPUs that keeps a latency promise."""


Files = Annotated[
    list[Path],
    typer.Option("-f", "--file", help="Manifests: LLMServices, AcceleratorClasses, PerformanceProfiles, Budgets."),
]
Catalogue = Annotated[
    list[Path] | None,
    typer.Option("-c", "--classes", help="More manifests: AcceleratorClasses and PerformanceProfiles."),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="CSV of requests (time, input tokens, output tokens): their sizes and rate are planned for."
    ),
]
TraceRate = Annotated[
    RateChoice, typer.Option("--trace-rate", help="Which of the trace's rates, over its windows, is planned for.")
]
TraceWindow = Annotated[str, typer.Option("--trace-window", help="Length of a window: 10s, 1m, 1h.")]
SpotHistory = Annotated[
    list[str] | None,
    typer.Option(
        "--spot-history",
        # No square brackets: in a help text they are markup.
        help="AWS spot price history (JSON): mean prices; or CLASS=FILE, CLASS/ZONE=FILE, with :ms, :s, :m or :h "
        "behind it for the unit of its times, nodes over time: how often one is taken away.",
    ),
]
Prices = Annotated[
    list[Path] | None,
    typer.Option("--prices", help="Prices that take the place of the catalogue's: AWS, Azure, Google Cloud, or YAML."),
]
StaleAfter = Annotated[int, typer.Option("--stale-after", min=0, help="Days after which a price is called old.")]
Out = Annotated[Output, typer.Option("-o", "--out", help="How to print it.")]


@main.command()
def plan(
    files: Files,
    *,
    catalogue: Catalogue = None,
    trace: Trace = None,
    trace_rate: TraceRate = RateChoice.P95,
    trace_window: TraceWindow = "1m",
    spot_history: SpotHistory = None,
    prices: Prices = None,
    stale_after: StaleAfter = 30,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw it too: a PNG, PDF or SVG file; needs matplotlib.")
    ] = None,
    diff: Annotated[
        bool,
        typer.Option("--diff", help="Compare with the service in the cluster of the current kubeconfig; reads only."),
    ] = False,
    kubeconfig: Annotated[
        Path | None, typer.Option("--kubeconfig", help="For --diff, instead of $KUBECONFIG or ~/.kube/config.")
    ] = None,
    namespace: Annotated[
        str, typer.Option("-n", "--namespace", help="For --diff, of a manifest that names none.")
    ] = "default",
    out: Out = Output.TABLE,
) -> None:
    """Show what a service would run on, what it costs, and why; needs no cluster and changes nothing.

    Exit status: 0 the demand is met, 1 it cannot be met within the bounds, 2 a manifest must be corrected.
    """
    paths = [*files, *(catalogue or [])]
    options = _said_clearly(lambda: _options(trace, trace_rate, trace_window, spot_history, prices, stale_after))
    if diff:
        from medley.cli import diff as differing  # noqa: PLC0415  # the API client, which only this needs

        if picture is not None:
            raise typer.BadParameter("a picture is of one plan; leave out --diff or --picture")
        raise typer.Exit(differing.run(paths, out.value, options, kubeconfig, namespace))
    from medley.cli import planned  # noqa: PLC0415  # a command pays for its own imports only

    raise typer.Exit(planned.run(paths, out.value, options, picture))


@main.command()
def explain(
    files: Files,
    *,
    catalogue: Catalogue = None,
    trace: Trace = None,
    trace_rate: TraceRate = RateChoice.P95,
    trace_window: TraceWindow = "1m",
    spot_history: SpotHistory = None,
    prices: Prices = None,
    stale_after: StaleAfter = 30,
    out: Out = Output.TABLE,
) -> None:
    """Say why a plan is as it is: what is not used and why, which bounds bind, what other promises would cost.

    Of a service that cannot be met: what the least is that would have to give.
    Exit status: as of `medley plan`.
    """
    from medley.cli import explained  # noqa: PLC0415

    options = _said_clearly(lambda: _options(trace, trace_rate, trace_window, spot_history, prices, stale_after))
    raise typer.Exit(explained.run([*files, *(catalogue or [])], out.value, options))


def _options(  # noqa: PLR0917  # as the commands name them
    trace: Path | None,
    rate: RateChoice,
    window: str,
    spot_history: list[str] | None,
    prices: list[Path] | None,
    stale_after: int,
) -> Options:
    from medley.cli.inputs import Options  # noqa: PLC0415

    return Options(
        trace=trace,
        rate=rate,
        window=duration(window, field="--trace-window"),
        prices=tuple(prices or ()),
        spot_history=tuple(spot_history or ()),
        stale_after=timedelta(days=stale_after),
    )


@operator.callback()
def run_operator(context: typer.Context) -> None:
    """Run the operator until it is told to stop; with `release`, let go of every LLMService instead."""
    if context.invoked_subcommand is None:
        from medley import app  # noqa: PLC0415

        _said_clearly(app.run_operator)


@operator.command()
def release() -> None:
    """Take medley's finalizer off every LLMService, so that deleting them never waits for an operator that is gone."""
    from medley import app  # noqa: PLC0415

    typer.echo(f"{_said_clearly(app.run_operator_release)} LLMServices released")


@main.command(context_settings=_OWN_ARGUMENTS)
def router(context: typer.Context) -> None:
    """Run a router: the OpenAI API in front of the engines of one service."""
    from medley import app  # noqa: PLC0415

    raise typer.Exit(app.run_router(context.args))


@main.command()
def engine() -> None:
    """Run the supervisor of one engine; the first process of an engine pod."""
    from medley.engine.__main__ import main as run_engine  # noqa: PLC0415

    raise typer.Exit(run_engine())


@main.command(context_settings=_OWN_ARGUMENTS)
def demo(context: typer.Context) -> None:
    """Serve a small model, take an engine away under load, and show that no stream broke."""
    from medley import app  # noqa: PLC0415

    raise typer.Exit(app.run_demo(context.args))


def _said_clearly(run: Callable[[], Result]) -> Result:
    """Run, and turn input that a person must correct into one line and status 2."""
    try:
        return run()
    except InvalidInputError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
