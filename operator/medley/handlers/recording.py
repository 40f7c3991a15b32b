"""Writes down what becomes of nodes that go away: Migrations, at the end of a pass, when all that serves is done.

Called by `reconciling`; what they say is `planning.records`' to decide. No error of a record fails a pass: it is logged
and counted, and the next pass tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from medley.core.errors import ClusterError, InvalidInputError
from medley.handlers.observing import View
from medley.handlers.routers import Routers
from medley.kube import migrations
from medley.kube.api import Api
from medley.kube.errors import ConflictError
from medley.planning.actions import Action, LaunchEngine
from medley.planning.records import LOOK_AGAIN, Record, begun, records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recorded:
    """When to look again, None: no record is open; and how many writes were refused."""

    due: timedelta | None = None
    refused: int = 0


async def recorded(api: Api, routers: Routers, view: View, actions: Iterable[Action], now: datetime) -> Recorded:
    """Bring the service's records up to date."""
    if view.migrations is None or view.observed.deleting:
        return Recorded()
    known = _read(view)
    heard = None
    if any(each.is_open for each in known) or begun(view.observed, known, now):
        key = view.item.metadata.namespace, view.item.metadata.name
        heard = await routers.departures(key, view.routers, now)
    launched = [each.name for each in actions if isinstance(each, LaunchEngine)]
    found = records(view.observed, known, heard, launched, now)
    before = {each.name: each for each in known}
    refused = 0
    for each in found.wanted:
        refused += not await _written(api, view, each, before.get(each.name))
    for each in found.expired:
        refused += not await _deleted(api, view, each)
    return Recorded(LOOK_AGAIN if any(each.is_open for each in found.wanted) else None, refused)


def _read(view: View) -> Sequence[Record]:
    """Return the records that are understood; those of another version of medley are left alone."""
    found = []
    for each in view.migrations or ():
        try:
            found.append(migrations.read(each))
        except InvalidInputError as error:
            logger.warning("Migration %s is left alone: %s", each["metadata"]["name"], error)
    return found


async def _written(api: Api, view: View, record: Record, before: Record | None) -> bool:
    """Write a record if it differs from what is there; False if that was refused."""
    try:
        if before is None:
            logger.info("%s: recording that %s leaves", record.name, record.node)
            record = replace(record, uid=await migrations.create(api, view.item, record))
        if before is None or before.progress != record.progress:
            await migrations.write_status(api, view.item, record)
    except ConflictError as error:
        logger.info("%s: %s; the next pass goes on with it", record.name, error)
    except ClusterError as error:
        logger.warning("%s: writing the record: %s", record.name, error)
        return False
    return True


async def _deleted(api: Api, view: View, record: Record) -> bool:
    try:
        await migrations.delete(api, view.item, record)
    except ConflictError as error:
        logger.info("%s: %s; it is another one by now", record.name, error)
    except ClusterError as error:
        logger.warning("%s: deleting the record: %s", record.name, error)
        return False
    return True
