"""What engines say of themselves: the state of their KV cache, and which LoRA adapters they serve.

`main` runs `follow`. Engines without medley's plugin answer 404 to the first, and are simply not in that table.
"""

from __future__ import annotations

import asyncio
import logging

from medley.core.errors import EngineError
from medley.router.attempt import Replica
from medley.router.engine_client import EngineClient
from medley.router.fleet import Fleet

logger = logging.getLogger(__name__)

CALM_SECONDS = 5.0
NOTICED_SECONDS = 0.5  # while a replica leaves: free memory decides where its streams go


async def follow(fleet: Fleet, engines: EngineClient) -> None:
    """Ask all replicas again and again, for ever; sooner when a notice comes or a replica is new."""
    last, last_calm, known = 0.0, 0.0, frozenset[str]()
    clock = asyncio.get_running_loop().time
    while True:
        names = frozenset(each.name for each in fleet.view.replicas.values() if each.ready)
        now, there = clock(), list(fleet.view.replicas.values())
        questions = []
        if names != known or now - last_calm >= CALM_SECONDS:
            last_calm = now
            questions += [_ask_for_adapters(fleet, engines, each) for each in there if each.ready]
        if names != known or now - last >= (NOTICED_SECONDS if fleet.leaving.seen else CALM_SECONDS):
            last = now
            questions += [_ask(fleet, engines, each) for each in there]
        known = names
        await asyncio.gather(*questions)
        await asyncio.sleep(NOTICED_SECONDS / 2)


async def _ask(fleet: Fleet, engines: EngineClient, replica: Replica) -> None:
    states, without = fleet.knowledge.states, fleet.knowledge.without
    try:
        state = await engines.kv_state(replica.url)
    except EngineError as error:
        logger.debug("%s", error)  # what it said before stands; whether it lives, its streams tell
        return
    if replica.name not in fleet.view.replicas:
        return
    if state is None:
        states.pop(replica.name, None)
        without.add(replica.name)
    else:
        states[replica.name] = state
        without.discard(replica.name)


async def _ask_for_adapters(fleet: Fleet, engines: EngineClient, replica: Replica) -> None:
    try:
        served = await engines.models(replica.url)
    except EngineError as error:
        logger.debug("%s", error)  # what it served before stands
        return
    knowledge = fleet.knowledge
    if replica.name in fleet.view.replicas:
        knowledge.adapters[replica.name] = frozenset(each.name for each in served if each.is_adapter)
        lengths = [each.longest for each in served if not each.is_adapter]
        knowledge.lengths[replica.name] = min(lengths, default=0)
