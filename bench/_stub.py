"""An engine without a model, as a process of its own, so that its work is not counted as the router's."""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from pathlib import Path

import uvloop

from tests.router.stub_engine import TOKENIZER, Fault, StubEngine


class _EndlessFaults(deque[Fault]):
    """Breaks every call at the same place."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    def __len__(self) -> int:
        return 1

    def popleft(self) -> Fault:
        return self._fault


async def main() -> None:
    """Serve until killed; write the URL into the file named, then the tokenizer beside it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between tokens")
    parser.add_argument("--cut-after", type=int, help="tokens after which every call breaks")
    given = parser.parse_args()
    engine = StubEngine(pause=lambda n: given.pause if n else 0.0, max_model_len=100_000)
    if given.cut_after is not None:
        engine.faults = _EndlessFaults(Fault("cut", given.cut_after))
    async with engine.running() as url:
        given.file.with_suffix(".json").write_text(TOKENIZER.to_str())
        given.file.write_text(url)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
