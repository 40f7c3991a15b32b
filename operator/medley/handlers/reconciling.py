"""One pass: observe, plan, act, write down, record; called by the work queue with the key of a service.

Everything that decides is in `planning`; here is only the order, and what becomes of errors: what a person must change
is in the status, what may work later raises and is tried again, and a bug is logged and ends this pass alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from medley.core.accelerators import Market
from medley.core.errors import ClusterError, InvalidInputError, MedleyError
from medley.core.names import Condition, Reason
from medley.handlers import observing, recording
from medley.handlers.acting import Refused, act
from medley.handlers.observing import View
from medley.handlers.routers import Routers
from medley.handlers.supervisors import Supervisors
from medley.kube import status as statuses
from medley.kube.api import Api
from medley.kube.events import EventPost
from medley.kube.manifests import Images
from medley.planning.actions import DeleteEngine
from medley.planning.conditions import with_refusals
from medley.planning.fleet import Truth
from medley.planning.reconcile import Event, Plan, Status, plan
from medley.telemetry.metrics import OperatorMetrics

logger = logging.getLogger(__name__)

Key = tuple[str, str]  # namespace, name


@dataclass(frozen=True)
class Reconciler:
    """What passes need; `clock` is an argument so that tests own the time."""

    api: Api
    supervisors: Supervisors
    routers: Routers
    images: Images
    events: EventPost
    metrics: OperatorMetrics
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def reconcile(self, key: Key) -> float | None:
        """Make one pass; return the seconds after which the next is due, None where only a change calls for it."""
        started = time.perf_counter()
        result = "error"
        try:
            due = await self._pass(key)
            result = "ok"
        except ClusterError as error:
            logger.warning("%s/%s: %s; trying again", *key, error)
            raise
        except MedleyError as error:
            logger.error("%s/%s: %s", *key, error)  # noqa: TRY400  # foreseen: no traceback
            raise
        except Exception:
            logger.exception("%s/%s: this pass met a bug", *key)
            raise
        finally:
            self.metrics.reconcile_seconds.labels(result).observe(time.perf_counter() - started)
        return due

    async def _pass(self, key: Key) -> float | None:
        now = self.clock()
        try:
            view = await observing.view(self.api, self.supervisors, self.routers, self.images, key, now=now)
        except InvalidInputError as error:
            # The API server lets nothing in that is not understood, unless its CRD is of another version.
            self.metrics.refusals.labels(Reason.INVALID_SPEC.value).inc()
            raise ClusterError(f"reading the service: {error}; apply the CRDs of this version of medley") from error
        if view is None:
            self.metrics.forget(*key)
            self.routers.forget(key)
            return None
        # In a thread: the solver may take seconds, and the Lease is renewed on this loop.
        decided = await asyncio.to_thread(plan, view.observed, now)
        burials = [each for each in decided.actions if isinstance(each, DeleteEngine) and each.force]
        others = [each for each in decided.actions if each not in burials]
        refused = await act(self.api, self.supervisors, view, others, now)
        begun = await recording.begin(self.api, view, now)
        refused += await act(self.api, self.supervisors, view, burials, now)
        await self._write_down(view, decided, refused, now)
        self._measure(view, decided)
        kept = await recording.go_on(self.api, self.routers, view, begun.records, actions=decided.actions, now=now)
        if begun.refused or kept.refused:
            self.metrics.refusals.labels(Reason.REFUSED_BY_CLUSTER.value).inc(begun.refused + kept.refused)
        due = [each for each in (decided.requeue_after, kept.due) if each is not None]
        return max(min(due).total_seconds(), 0.1) if due else None

    async def _write_down(self, view: View, decided: Plan, refused: tuple[Refused, ...], now: datetime) -> None:
        status = decided.status
        events = decided.events
        if refused:
            events += tuple(Event(each.reason, each.message, warning=True) for each in refused)
        if status is not None:
            said = with_refusals(
                view.observed, status.conditions, [(each.reason, each.message) for each in refused], now
            )
            written = statuses.status_json(view.item, replace(status, conditions=said), now)
            if statuses.changed(view.status, written):
                await statuses.write(self.api, view.item, written)
                self._count_refusals(view, said_reasons(replace(status, conditions=said)))
        await self.events.post(view.item, events, now)

    def _count_refusals(self, view: View, reasons: frozenset[Reason]) -> None:
        before = frozenset(each.reason for each in view.observed.standing.conditions if each.status is Truth.FALSE)
        for reason in reasons - before:
            self.metrics.refusals.labels(reason.value).inc()

    def _measure(self, view: View, decided: Plan) -> None:
        self.metrics.noticed(view.observed.notices)
        ends = {each.role: each.expires for each in view.trust.trust.certificates}
        self.metrics.certified(view.item.metadata.namespace, view.item.metadata.name, ends)
        status, service = decided.status, view.observed.service
        if status is None:
            return
        self.metrics.counted(
            service.namespace, service.name, desired=status.desired, ready=status.ready, spot=status.spot
        )
        if status.proposal is None:
            return
        by_market: defaultdict[Market, float] = defaultdict(float)
        prices = status.proposal.usd_per_replica_hour
        for offering, count in status.proposal.wanted.items():
            by_market[offering.market] += prices[offering] * count
        self.metrics.planned(service.namespace, service.name, by_market, status.proposal.on_demand_usd_per_hour)


def said_reasons(status: Status) -> frozenset[Reason]:
    """Return the reasons of the conditions that are False; Ready only repeats another."""
    return frozenset(
        each.reason
        for each in status.conditions
        if each.status is Truth.FALSE and each.type is not Condition.READY and each.reason is not Reason.STARTING
    )
