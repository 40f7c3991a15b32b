"""Writes down what becomes of nodes that go away: Migration objects; what they say is `planning.records`' to decide.

Called by `reconciling`, twice a pass: a record begins before pods whose node is gone are deleted, since nothing would
tell of them afterwards; what it says follows at the end, when all that serves is done. No error of a record fails a
pass: it is logged and counted, and the next pass tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from medley.core.errors import ClusterError, InvalidInputError, ObjectGoneError
from medley.handlers.observing import View
from medley.handlers.routers import Routers
from medley.kube import migrations
from medley.kube.api import Api
from medley.kube.errors import ConflictError
from medley.planning.actions import Action, LaunchEngine
from medley.planning.records import LOOK_AGAIN, Record, begun, records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """Records that there are; how many writes were refused; when to look again, None: no record is open."""

    records: tuple[Record, ...] = ()
    refused: int = 0
    due: timedelta | None = None


async def begin(api: Api, view: View, now: datetime) -> Kept:
    """Make the records that are missing; return them and those that were there."""
    if view.migrations is None or view.observed.deleting:
        return Kept()
    known = _read(view.migrations)
    made, refused = [], 0
    for each in begun(view.observed, known, now):
        logger.info("%s: recording that %s leaves", each.name, each.node)
        try:
            made.append(await migrations.create(api, view.item, each))
        except ConflictError as error:
            logger.info("%s: %s; the next pass goes on with it", each.name, error)
        except ClusterError as error:
            logger.warning("%s: writing the record: %s", each.name, error)
            refused += 1
    return Kept((*known, *made), refused)


async def go_on(
    api: Api, routers: Routers, view: View, known: tuple[Record, ...], *, actions: Iterable[Action], now: datetime
) -> Kept:
    """Bring records up to date, and delete those whose time is over; `actions`: what this pass did."""
    heard = None
    if any(each.is_open for each in known):
        key = view.item.metadata.namespace, view.item.metadata.name
        heard = await routers.departures(key, view.routers, now)
    launched = [each.name for each in actions if isinstance(each, LaunchEngine)]
    found = records(view.observed, known, heard, launched, now)
    before = {each.name: each.progress for each in known}
    refused = 0
    for each in found.wanted:
        if each.progress != before[each.name]:
            refused += await _refused(migrations.write_status(api, view.item, each))
    for each in found.expired:
        refused += await _refused(migrations.delete(api, view.item, each))
    return Kept(found.wanted, refused, LOOK_AGAIN if any(each.is_open for each in found.wanted) else None)


def _read(objects: Iterable[migrations.Json]) -> tuple[Record, ...]:
    """Return the records that are understood; those of another version of medley are left alone."""
    found = []
    for each in objects:
        try:
            found.append(migrations.read(each))
        except InvalidInputError as error:
            logger.warning("Migration %s is left alone: %s", each["metadata"]["name"], error)
    return tuple(found)


async def _refused(write: Awaitable[None]) -> bool:
    try:
        await write
    except (ConflictError, ObjectGoneError) as error:
        logger.info("a record is another one by now, or gone: %s", error)
    except ClusterError as error:
        logger.warning("keeping a record: %s", error)
        return True
    return False
