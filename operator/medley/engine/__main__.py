"""`python3 -m medley.engine`: PID 1 of an engine pod. Wires the parts together and knows signals and ports."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
import tempfile
from pathlib import Path

from aiohttp import web

from medley.core.errors import InvalidInputError
from medley.engine.client import EngineClient
from medley.engine.control import control_app
from medley.engine.entry_point import write_entry_point
from medley.engine.front import open_front
from medley.engine.reaper import adopt_orphans
from medley.engine.settings import Settings
from medley.engine.status import status_app
from medley.engine.supervisor import Supervisor, log
from medley.tls.keyring import Keyring


def main() -> int:
    """Run until SIGTERM; return the exit status: 0, or 2 for an environment that a person must correct."""
    try:
        settings = Settings.read(os.environ)
        keyring = None if settings.tls_folder is None else Keyring(settings.tls_folder, log)
    except InvalidInputError as error:
        log(str(error))
        return 2
    adopt_orphans()
    asyncio.run(_serve(settings, keyring))
    return 0


async def _serve(settings: Settings, keyring: Keyring | None) -> None:
    with tempfile.TemporaryDirectory(prefix="medley-") as folder:
        write_entry_point(Path(folder))
        socket_file = None if keyring is None else Path(folder) / "vllm.sock"
        async with EngineClient(settings.engine_host, settings.engine_port, settings.key, socket_file) as client:
            supervisor = Supervisor(settings, client, Path(folder), socket_file)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, supervisor.terminate)
            host = settings.bind_host
            context = None if keyring is None else keyring.server
            control = await _listen(
                control_app(supervisor, settings.key, keyring), host, settings.control_port, context
            )
            status = await _listen(status_app(supervisor, client), host, settings.status_port)
            front = None
            if keyring is not None and socket_file is not None:
                front = await open_front(keyring, host, settings.engine_port, socket_file)
            log(f"control on {settings.control_port}, status on {settings.status_port}")
            try:
                await supervisor.run()
            finally:
                if front is not None:
                    front.close()
                await control.cleanup()
                await status.cleanup()
            log("ended")


async def _listen(app: web.Application, host: str, port: int, context: ssl.SSLContext | None = None) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=context).start()
    return runner


if __name__ == "__main__":
    sys.exit(main())
