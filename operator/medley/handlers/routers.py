"""Reads what routers count, from their /metrics as any scraper does, and remembers it for an hour.

Called by `observing`, once a pass. What it remembers it may lose: a new leader goes on with the traffic in the
service's status until it has listened for as long (`planning/traffic.py`). A router that does not answer is left out
this time; what it counted meanwhile comes with its next answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta

import aiohttp

from medley.core import names
from medley.core.errors import EngineError
from medley.core.traffic import Counts
from medley.planning.ledger import Ledger, forgotten, read
from medley.telemetry.counts import counts

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0
OK = 200
SELDOM = timedelta(seconds=5)  # passes come in bursts, and counts are for minutes
Key = tuple[str, str]  # namespace, name of a service


class Routers:
    """A client of all routers; `port` differs only in tests, where many share one address."""

    def __init__(self, session: aiohttp.ClientSession, port: int = names.PORT_ROUTER) -> None:
        self._session = session
        self._port = port
        self._ledgers: dict[Key, Ledger] = {}

    async def listen(self, key: Key, addresses: Mapping[str, str], now: datetime) -> Ledger:
        """Return all that is remembered of a service's routers, with what those at these addresses say now.

        `addresses`: by what tells one router from another that took its address. None: the service is not listened to.
        """
        ledger = self._ledgers.get(key, Ledger())
        if not addresses or (ledger.totals and now - ledger.totals[-1].at < SELDOM):
            return ledger
        answers = await asyncio.gather(*(self._counts(address) for address in addresses.values()))
        said = {name: each for name, each in zip(addresses, answers, strict=True) if each is not None}
        known = forgotten(ledger, frozenset(addresses))
        self._ledgers[key] = read(known, said, now)
        return self._ledgers[key]

    def forget(self, key: Key) -> None:
        """Forget a service that is gone."""
        self._ledgers.pop(key, None)

    async def _counts(self, address: str) -> Counts | None:
        try:
            return counts(await self._scraped(address))
        except EngineError as error:
            logger.info("%s: %s", address, error)
            return None

    async def _scraped(self, address: str) -> str:
        url = f"http://{names.url_host(address)}:{self._port}/metrics"
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            async with self._session.get(url, timeout=timeout) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError) as error:
            raise EngineError(f"GET {url}: {type(error).__name__}: {error}") from error
        if response.status != OK:
            raise EngineError(f"GET {url}: {response.status}: {text[:500]}")
        return text
