"""The tests' engine without a model, as a process that can be killed: `python -m e2e.soak.stub_process --port 8000`."""

from __future__ import annotations

import argparse
import asyncio

from tests.router.stub_engine import StubEngine


async def _serve(port: int, pause_s: float) -> None:
    engine = StubEngine(
        pause=lambda _: pause_s, resumes_output=True, numerics="stub", prefill_seconds=0.0002, max_model_len=8192
    )
    async with engine.running(ports=(port,)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pause", type=float, required=True, help="seconds between tokens")
    given = parser.parse_args()
    asyncio.run(_serve(given.port, given.pause))
