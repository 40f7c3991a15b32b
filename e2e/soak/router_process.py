"""A router whose fleet is told by lines on its standard input, as a watch would tell it: notices included.

Each line is JSON, the whole fleet: {"replicas": [{"name", "url", "leaves_at": seconds of the epoch or null}, ...],
"ways": null, or "carry" or "refill" to have the router do the one or the other wherever it can}.
When it listens it writes its URL. It ends with its input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop

from medley.planning.carrying import Link, Target
from medley.planning.routing import Candidate
from medley.router.attempt import Replica
from medley.router.engine_client import EngineClient
from medley.router.fleet import FleetView, Limits
from medley.router.leaving import Knowledge
from medley.router.main import running
from medley.router.server import Followed
from medley.router.settings import RouterSettings


@dataclass(slots=True)
class Steered(Knowledge):
    """What the router believes of its engines, bent so that it chooses what a measurement is about."""

    ways: str | None = None

    def link(self, source: str) -> Link | None:
        """Say that nothing is exported, if all is to be computed again."""
        return None if self.ways == "refill" else super(Steered, self).link(source)

    def target(self, candidate: Candidate, replica: Replica, source: str) -> Target:
        """Say that nothing can be computed in time, if all is to be carried."""
        known = super(Steered, self).target(candidate, replica, source)
        return replace(known, prefill_tokens_per_s=1.0) if self.ways == "carry" else known


def view(line: str) -> FleetView:
    """Return the fleet that a line tells of."""
    replicas = [
        Replica(
            name=each["name"],
            url=each["url"],
            leaves_at=None if each["leaves_at"] is None else datetime.fromtimestamp(each["leaves_at"], UTC),
            resumes_output=True,
        )
        for each in json.loads(line)["replicas"]
    ]
    return FleetView({each.name: each for each in replicas})


async def _serve(given: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    ended = asyncio.Event()

    async def follow(kept: Followed, _: EngineClient) -> None:
        kept.serving.model = given.model
        steered = Steered()
        kept.fleet.knowledge = steered
        while line := await told.readline():
            steered.ways = json.loads(line).get("ways")
            kept.fleet.replace(view(line.decode()))
        ended.set()
        await asyncio.Event().wait()

    settings = RouterSettings(
        engines=("https://named.on.standard.input",),
        tokenizer=given.tokenizer,
        engine_key_file=given.key_file,
        tls_folder=given.tls_folder,
        host="127.0.0.1",
        port=0,
        limits=Limits(silence=timedelta(seconds=given.silence)),
        grace=timedelta(seconds=1),
    )
    async with running(settings, follow) as router:
        sys.stdout.write(f"{router.url}\n")
        sys.stdout.flush()
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait((waiting, router.background), return_when=asyncio.FIRST_COMPLETED)
        if router.background.done():
            await router.background


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--tls-folder", type=Path)
    parser.add_argument("--silence", type=float, required=True, help="longest silence between tokens, seconds")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    uvloop.run(_serve(parser.parse_args()))
