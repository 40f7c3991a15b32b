"""Composition roots: from the environment of a process to its parts. `cli` calls these, lazily."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from medley.core.errors import InvalidInputError


def run_operator() -> None:
    """Run the operator until SIGTERM or SIGINT; raises InvalidInputError for an environment that must be corrected."""
    from medley.handlers import operator  # noqa: PLC0415  # kopf and the API client, which only the operator has
    from medley.handlers.settings import Settings  # noqa: PLC0415
    from medley.telemetry import logs  # noqa: PLC0415

    settings = Settings.read(os.environ)
    logs.configure(settings.log_level)

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await operator.run(settings, stop)

    asyncio.run(main())


def run_operator_release() -> int:
    """Take medley's finalizer off every LLMService, so that none hangs once the operator is gone; return how many."""
    from medley.handlers import operator  # noqa: PLC0415
    from medley.kube.api import connected  # noqa: PLC0415
    from medley.telemetry import logs  # noqa: PLC0415

    logs.configure(os.environ.get("MEDLEY_LOG_LEVEL", "INFO"))

    async def main() -> int:
        async with connected() as api:
            return await operator.release_all(api)

    return asyncio.run(main())


def run_router(arguments: Sequence[str]) -> int:
    """Run a router until it is told to stop; 2: an argument or a variable must be corrected."""
    from medley.router import main  # noqa: PLC0415
    from medley.router.settings import read_settings  # noqa: PLC0415
    from medley.telemetry import logs  # noqa: PLC0415

    logs.configure(os.environ.get("MEDLEY_LOG_LEVEL", "INFO"))
    try:
        main.run_router(read_settings(arguments, os.environ))
    except InvalidInputError as error:
        print(error, file=sys.stderr)  # noqa: T201  # for the person who typed it
        return 2
    return 0


def run_demo(arguments: Sequence[str]) -> int:
    """Run the demonstration that needs no cluster; 0: nothing was lost."""
    from medley.demo.local import run_demo as run  # noqa: PLC0415

    return run(arguments)
