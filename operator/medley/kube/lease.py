"""Leader election by a Lease, with the times of Kubernetes' own components.

`app.run_operator` runs `elected`. A candidate that sees the Lease unchanged for its whole duration, by its own clock,
takes it; clocks of different machines are never compared. A leader that could not renew for RENEW_DEADLINE stops acting
at once, five seconds before anybody else may begin.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from medley.core.errors import ClusterError, ObjectGoneError
from medley.kube.api import LEASE, Api, Json
from medley.kube.errors import ConflictError

logger = logging.getLogger(__name__)

LEASE_DURATION_SECONDS = 15
RENEW_DEADLINE_SECONDS = 10.0
RETRY_PERIOD_SECONDS = 2.0
# One request that hangs must not use up the whole deadline.
ATTEMPT_SECONDS = RENEW_DEADLINE_SECONDS / 2


@dataclass(frozen=True, slots=True)
class Sighting:
    """A Lease as it was first seen in this state, by this process's monotonic clock."""

    version: str
    at: float


class Election:
    """One candidate for one Lease."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        contact: Callable[[], None] = lambda: None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._contact = contact  # called whenever the API server answered
        self._seen: Sighting | None = None
        self._mine: Json | None = None  # as we wrote it last

    async def held(self) -> bool:
        """Try once to take or renew the Lease; True if it is ours now. `ClusterError` if nobody can say."""
        try:
            if self._mine is not None and await self._renew(self._mine):
                return True
            lease = await self._api.get(LEASE, self._name, self._namespace)
            self._contact()
            if lease is None:
                body = {"apiVersion": LEASE.api_version, "kind": "Lease", "metadata": {"name": self._name}}
                self._mine = await self._api.create(LEASE, {**body, "spec": self._spec({})}, self._namespace)
                return True
            return self._may_take(lease) and await self._renew(lease)
        except ConflictError:
            return False  # somebody was faster

    async def _renew(self, lease: Json) -> bool:
        """Write the Lease over `lease` if that is still what is there: one request, as renewals are most writes."""
        self._mine = None
        try:
            body = {**lease, "spec": self._spec(lease.get("spec", {}))}
            self._mine = await self._api.replace(LEASE, body, self._namespace)
        except (ConflictError, ObjectGoneError):
            return False
        self._contact()
        return True

    async def release(self) -> None:
        """Give the Lease up, so that the next leader need not wait; nothing happens if it is not ours."""
        lease = await self._api.get(LEASE, self._name, self._namespace)
        if lease is None or lease.get("spec", {}).get("holderIdentity") != self._identity:
            return
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        await self._api.replace(LEASE, {**lease, "spec": spec}, self._namespace)

    async def lead(self, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `act` for as long as the Lease is held, again and again; return when `act` returns by itself."""
        while True:
            await self._won()
            logger.info("Leading as %s", self._identity)
            acting = asyncio.create_task(act())
            renewing = asyncio.create_task(self._renewed())
            try:
                await asyncio.wait({acting, renewing}, return_when=asyncio.FIRST_COMPLETED)
                if acting.done():
                    acting.result()
                    return
                renewing.result()
            finally:
                for task in (acting, renewing):
                    task.cancel()
                await asyncio.gather(acting, renewing, return_exceptions=True)
            logger.warning("Lost the lease %s/%s: stopped acting", self._namespace, self._name)

    async def _won(self) -> None:
        while True:
            try:
                if await self.held():
                    return
            except ClusterError as error:
                logger.warning("Standing for election: %s", error)
            await asyncio.sleep(RETRY_PERIOD_SECONDS)

    async def _renewed(self) -> None:
        """Renew until the Lease is lost."""
        renewed_at = self._clock()
        while True:
            await asyncio.sleep(RETRY_PERIOD_SECONDS)
            left = renewed_at + RENEW_DEADLINE_SECONDS - self._clock()
            try:
                async with asyncio.timeout(min(max(left, 0), ATTEMPT_SECONDS)):
                    started = self._clock()
                    if not await self.held():
                        return
                    renewed_at = started
            except (ClusterError, TimeoutError) as error:
                logger.warning("Renewing the lease: %s", str(error) or "no answer in time")
                if self._clock() - renewed_at >= RENEW_DEADLINE_SECONDS:
                    return

    def _may_take(self, lease: Json) -> bool:
        spec = lease.get("spec", {})
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        version = lease["metadata"]["resourceVersion"]
        now = self._clock()
        if self._seen is None or self._seen.version != version:
            self._seen = Sighting(version, now)
        duration: float = spec.get("leaseDurationSeconds", LEASE_DURATION_SECONDS)
        return now - self._seen.at > duration

    def _spec(self, old: Json) -> Json:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        taken = old.get("holderIdentity") != self._identity
        return {
            **old,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_DURATION_SECONDS,
            "renewTime": now,
            "acquireTime": now if taken else old.get("acquireTime", now),
            "leaseTransitions": int(old.get("leaseTransitions", 0)) + (1 if taken and old else 0),
        }
