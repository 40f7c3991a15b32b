"""Watch one kind of object: a cache by key that survives an API server that goes away.

The router follows Pods, Nodes and its LLMService with it; the operator follows what kopf does not. After each change
the consumer gets a `Change`, whose `objects` is the cache itself, never a copy. While the API server is away the cache
stays as it was, and after a gap too long to bridge everything is listed again: what vanished meanwhile is in `removed`.

    async for change in watched(api, NODE):
        fleet = fleet.with_nodes(change.objects)
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from medley.core.errors import ClusterError
from medley.kube.api import Api, Json, Kind, selectors
from medley.kube.errors import ExpiredError, of_status

logger = logging.getLogger(__name__)

# The server ends a watch after this; it sends a bookmark about once a minute (at most 75 s apart), so a connection that
# says nothing for longer than SILENCE_SECONDS is dead, however alive its socket looks.
WATCH_SECONDS = 300
SILENCE_SECONDS = 90.0
FIRST_BACKOFF_SECONDS = 0.25
LAST_BACKOFF_SECONDS = 5.0


class ObjectKey(NamedTuple):
    """Identity of an object within its kind; the namespace of cluster-scoped objects is empty."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Change:
    """What one step of a watch changed, and all there is after it."""

    objects: Mapping[ObjectKey, Mapping[str, Any]]
    changed: tuple[ObjectKey, ...]  # added or modified
    removed: tuple[ObjectKey, ...]
    listed: bool = False  # the cache was read anew: the first Change of every watch is


async def watched(
    api: Api, kind: Kind, *, namespace: str | None = None, labels: str = "", fields: str = ""
) -> AsyncIterator[Change]:
    """Yield a `Change` for the first list and then for every change, for ever; it ends only by cancellation.

    `labels` and `fields` are selectors in Kubernetes' own notation.
    """
    cache: dict[ObjectKey, Json] = {}
    view = MappingProxyType(cache)
    version = ""
    backoff = FIRST_BACKOFF_SECONDS
    while True:
        try:
            if not version:
                objects, version = await api.list(kind, namespace, labels=labels, fields=fields)
                yield _replaced(cache, view, {_key(each): each for each in objects})
            async for event in api.stream(
                kind.path(namespace), _watch_query(version, labels, fields), silence_seconds=SILENCE_SECONDS
            ):
                version = _version(event, version)
                backoff = FIRST_BACKOFF_SECONDS
                change = _step(cache, view, event)
                if change is not None:
                    yield change
        except ExpiredError:
            version = ""
        except ClusterError as error:
            logger.warning("%s; trying again in about %.1f s", error, backoff)
            # Jitter: many routers lose the same API server at the same moment.
            await asyncio.sleep(backoff * random.uniform(0.5, 1.5))  # noqa: S311  # not for secrecy
            backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)


def _watch_query(version: str, labels: str, fields: str) -> list[tuple[str, str]]:
    return [
        ("watch", "true"),
        ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", str(WATCH_SECONDS)),
        ("resourceVersion", version),
        *selectors(labels, fields),
    ]


def _replaced(cache: dict[ObjectKey, Json], view: Mapping[ObjectKey, Json], new: Mapping[ObjectKey, Json]) -> Change:
    removed = tuple(key for key in cache if key not in new)
    changed = tuple(key for key, each in new.items() if _resource_version(each) != _resource_version(cache.get(key)))
    cache.clear()
    cache.update(new)
    return Change(view, changed, removed, listed=True)


def _step(cache: dict[ObjectKey, Json], view: Mapping[ObjectKey, Json], event: Json) -> Change | None:
    thing = event["object"]
    match event["type"]:
        case "ADDED" | "MODIFIED":
            key = _key(thing)
            cache[key] = thing
            return Change(view, (key,), ())
        case "DELETED":
            key = _key(thing)
            cache.pop(key, None)
            return Change(view, (), (key,))
        case "BOOKMARK":
            return None
        case _:  # ERROR: a Status object
            status = int(thing.get("code", 0))
            raise of_status(status, f"watching: {thing.get('message', thing)}")


def _version(event: Json, current: str) -> str:
    if event["type"] == "ERROR":
        return current
    return str(event["object"]["metadata"]["resourceVersion"])


def _key(thing: Mapping[str, Any]) -> ObjectKey:
    meta = thing["metadata"]
    return ObjectKey(meta.get("namespace", ""), meta["name"])


def _resource_version(thing: Mapping[str, Any] | None) -> str | None:
    return None if thing is None else thing["metadata"].get("resourceVersion")
