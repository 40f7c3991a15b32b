"""Events that people see with `kubectl describe llmservice`: made and posted here and nowhere else.

`handlers/reconciling.py` posts what `planning.reconcile` decided. One Event object per service, reason and message: a
repetition raises its count. A repetition within QUIET is not sent at all, so an idle operator writes none.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from medley.api.llmservice import LLMService
from medley.core import names
from medley.core.errors import ClusterError
from medley.kube.api import EVENT, LLM_SERVICE, Api
from medley.kube.errors import ConflictError
from medley.planning.reconcile import Event

logger = logging.getLogger(__name__)

QUIET = timedelta(minutes=10)
_LONGEST_MESSAGE = 1024  # the API server refuses more
_REMEMBERED = 10_000
_CONTROLLER = f"{names.GROUP}/operator"


class EventPost:
    """Posts Events and remembers which were sent lately."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._sent: dict[str, tuple[datetime, int]] = {}

    async def post(self, item: LLMService, events: Iterable[Event], now: datetime) -> None:
        """Send what was not sent lately. An Event that cannot be sent is logged: no pass fails for it."""
        for event in events:
            name = event_name(item, event)
            last, count = self._sent.get(name, (None, 0))
            if last is not None and now - last < QUIET:
                continue
            self._remember(name, now, count + 1)
            try:
                await self._send(item, event, name, now, count)
            except ClusterError as error:
                logger.warning("Posting event %s: %s", event.reason, error)

    def _remember(self, name: str, now: datetime, count: int) -> None:
        self._sent[name] = (now, count)
        if len(self._sent) > _REMEMBERED:
            self._sent = {key: (at, n) for key, (at, n) in self._sent.items() if now - at < QUIET}

    async def _send(self, item: LLMService, event: Event, name: str, now: datetime, count: int) -> None:
        at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = item.metadata.namespace
        try:
            if count == 0:
                await self._api.create(EVENT, _manifest(item, event, name, at, self._instance), namespace)
                return
        except ConflictError:
            count = 1  # a leader before us sent it
        await self._api.merge(EVENT, name, namespace, {"lastTimestamp": at, "count": count + 1})


def event_name(item: LLMService, event: Event) -> str:
    """Return the name of the Event object: equal for equal news about one service."""
    text = f"{item.metadata.uid}/{event.reason}/{event.message}"
    return f"{item.metadata.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _manifest(item: LLMService, event: Event, name: str, at: str, instance: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": item.metadata.namespace},
        "involvedObject": {
            "apiVersion": LLM_SERVICE.api_version,
            "kind": LLM_SERVICE.kind,
            "name": item.metadata.name,
            "namespace": item.metadata.namespace,
            "uid": item.metadata.uid,
        },
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason.value,
        "message": event.message[:_LONGEST_MESSAGE],
        "source": {"component": "medley"},
        "reportingComponent": _CONTROLLER,
        "reportingInstance": instance,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
