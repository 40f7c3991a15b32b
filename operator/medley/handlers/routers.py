"""Reads what routers count, from their /metrics as any scraper does, and remembers it for an hour.

Called by `observing`, once a pass, and by `recording` while streams leave replicas. What it remembers it may lose: a
new leader goes on with the traffic in the service's status until it has listened for as long (`planning/traffic.py`). A
router that does not answer is left out this time; what it counted meanwhile comes with its next answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

import aiohttp

from medley.core import names
from medley.core.errors import EngineError
from medley.handlers.asking import answered, url_of
from medley.planning.ledger import Ledger, forgotten, read
from medley.planning.records import Heard, heard_of
from medley.telemetry.counts import counts
from medley.telemetry.departures import departures

logger = logging.getLogger(__name__)

SELDOM = timedelta(seconds=5)  # passes come in bursts, and counts are for minutes
OFTEN = timedelta(seconds=2)  # while streams leave a replica
Key = tuple[str, str]  # namespace, name of a service
Said = TypeVar("Said")


class Routers:
    """A client of all routers; `port` differs only in tests, where many share one address."""

    def __init__(self, session: aiohttp.ClientSession, port: int = names.PORT_ROUTER) -> None:
        self._session = session
        self._port = port
        self._ledgers: dict[Key, Ledger] = {}
        self._asked: dict[Key, datetime] = {}  # about departures

    async def listen(self, key: Key, addresses: Mapping[str, str], now: datetime) -> Ledger:
        """Return all that is remembered of a service's routers, with what those at these addresses say now.

        `addresses`: by what tells one router from another that took its address. None: the service is not listened to.
        """
        ledger = self._ledgers.get(key, Ledger())
        if not addresses or (ledger.totals and now - ledger.totals[-1].at < SELDOM):
            return ledger
        answers = await asyncio.gather(*(self._said(address, counts) for address in addresses.values()))
        said = {name: each for name, each in zip(addresses, answers, strict=True) if each is not None}
        known = forgotten(ledger, frozenset(addresses))
        self._ledgers[key] = read(known, said, now)
        return self._ledgers[key]

    async def departures(self, key: Key, addresses: Mapping[str, str], now: datetime) -> Heard | None:
        """Return what a service's routers say now of the streams that left replicas; None: they were asked just now."""
        asked = self._asked.get(key)
        if asked is not None and asked <= now < asked + OFTEN:
            return None
        self._asked[key] = now
        return heard_of(await asyncio.gather(*(self._said(address, departures) for address in addresses.values())))

    def forget(self, key: Key) -> None:
        """Forget a service that is gone."""
        self._ledgers.pop(key, None)
        self._asked.pop(key, None)

    async def _said(self, address: str, read_by: Callable[[str], Said]) -> Said | None:
        try:
            return read_by(await answered(self._session, "GET", url_of("http", address, self._port, "/metrics")))
        except EngineError as error:
            logger.info("%s: %s", address, error)
            return None
