"""The command `medley`. Parses arguments and hands over; each part is imported only when its command runs.

    medley plan -f service.yaml         what it would cost, and why            (planned.py)
    medley operator [release]           the operator; let go of services       (app.run_operator, run_operator_release)
    medley router [...]                 the front door                         (app.run_router)
    medley engine                       the supervisor in an engine pod        (medley.engine.__main__)
    medley demo [...]                   serve, take an engine away, show       (app.run_demo)

Exit status: 0 done, 1 the answer is no, 2 the input must be corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from medley import __version__
from medley.core.errors import InvalidInputError

Result = TypeVar("Result")

main = typer.Typer(
    name="medley",
    help="Serve a large language model on the cheapest mix of GPUs that keeps a latency promise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
operator = typer.Typer(help="Run the operator.", invoke_without_command=True)
main.add_typer(operator, name="operator")

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


@main.command()
def plan(
    files: Annotated[
        list[Path],
        typer.Option("-f", "--file", help="Manifests: one LLMService, and AcceleratorClasses and PerformanceProfiles."),
    ],
    catalogue: Annotated[
        list[Path] | None,
        typer.Option("-c", "--classes", help="More manifests: AcceleratorClasses and PerformanceProfiles."),
    ] = None,
    out: Annotated[Output, typer.Option("-o", "--out", help="How to print it.")] = Output.TABLE,
) -> None:
    """Show what a service would run on, what it costs, and why; needs no cluster and changes nothing.

    Exit status: 0 the demand is met, 1 it cannot be met within the bounds, 2 a manifest must be corrected.
    """
    from medley.cli import planned  # noqa: PLC0415  # a command pays for its own imports only

    raise typer.Exit(planned.run([*files, *(catalogue or [])], out.value))


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
