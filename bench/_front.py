"""Processes of `front`: the supervisor's TLS before a socket file, and a stub engine on that file."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from aiohttp import web

from medley.engine.front import open_front
from medley.tls.keyring import Keyring
from tests.router.stub_engine import StubEngine


async def _front(socket_file: Path, folder: Path, port: int) -> None:
    server = await open_front(Keyring(folder, sys.stderr.write), "127.0.0.1", port, socket_file)
    await server.serve_forever()


async def _engine(socket_file: Path, pause: float) -> None:
    engine = StubEngine(pause=lambda _: pause, max_model_len=2**20)
    runner = web.AppRunner(engine.application(), access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(socket_file)).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="certificates of the front; without: be the engine")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0)
    given = parser.parse_args()
    part = (
        _engine(given.socket, given.pause) if given.folder is None else _front(given.socket, given.folder, given.port)
    )
    asyncio.run(part)
