"""`python3 -m medley.engine`: PID 1 of an engine pod. Wires the parts together and knows signals and ports."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from aiohttp import web

from medley.core.errors import InvalidInputError
from medley.engine.client import EngineClient
from medley.engine.control import control_app
from medley.engine.entry_point import write_entry_point
from medley.engine.reaper import adopt_orphans
from medley.engine.settings import Settings
from medley.engine.status import status_app
from medley.engine.supervisor import Supervisor, log


def main() -> int:
    """Run until SIGTERM; return the exit status: 0, or 2 for an environment that a person must correct."""
    try:
        settings = Settings.read(os.environ)
    except InvalidInputError as error:
        log(str(error))
        return 2
    adopt_orphans()
    asyncio.run(_serve(settings))
    return 0


async def _serve(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="medley-") as folder:
        write_entry_point(Path(folder))
        async with EngineClient(settings.engine_host, settings.engine_port, settings.key) as client:
            supervisor = Supervisor(settings, client, Path(folder))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, supervisor.terminate)
            control = await _listen(control_app(supervisor, settings.key), settings.bind_host, settings.control_port)
            status = await _listen(status_app(supervisor), settings.bind_host, settings.status_port)
            log(f"control on {settings.control_port}, status on {settings.status_port}")
            try:
                await supervisor.run()
            finally:
                await control.cleanup()
                await status.cleanup()
            log("ended")


async def _listen(app: web.Application, host: str, port: int) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


if __name__ == "__main__":
    sys.exit(main())
