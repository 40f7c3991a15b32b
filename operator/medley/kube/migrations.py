"""Migration objects, both ways: read into `planning.records.Record`, and written, each only as it should be.

Called by `kube/observe.py` and `handlers/recording.py`. Records are worth less than what serves: reading them never
fails a pass.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from medley.api import convert
from medley.api.llmservice import LLMService
from medley.api.migration import MigrationSpec, MigrationStatus, Streams
from medley.api.migration import Move as MoveEntry
from medley.core import names
from medley.core.errors import ClusterError
from medley.core.migrations import MigrationMethod
from medley.kube import manifests
from medley.kube.api import MIGRATION, Api
from medley.planning.records import Move, Progress, Record

logger = logging.getLogger(__name__)

Json = Mapping[str, Any]


async def listed(api: Api, namespace: str, service: str) -> list[dict[str, Any]] | None:
    """Return a service's records; None: they cannot be read, so that none may be written either."""
    try:
        return (await api.list(MIGRATION, namespace, labels=f"{names.LABEL_SERVICE}={service}"))[0]
    except ClusterError as error:
        logger.warning("%s/%s: Migrations are not kept: %s; install medley's CRDs and roles", namespace, service, error)
        return None


def read(migration: Json) -> Record:
    """Return the record that an object is; InvalidInputError for one of another version."""
    item = convert.read_migration(migration)
    meta, spec, status = item.metadata, item.spec, item.status
    return Record(
        name=meta.name,
        node=spec.node,
        deadline=spec.deadline,
        source=spec.source,
        cause=spec.cause,
        replicas=spec.replicas,
        created_at=meta.creation_timestamp or datetime.min.replace(tzinfo=UTC),
        uid=meta.uid,
        progress=Progress(
            phase=status.phase,
            replacements=status.replacements,
            moves=tuple(sorted(Move(each.replica, each.method, each.streams) for each in status.moves)),
            lost=None if status.streams is None else status.streams.lost,
            completed_at=status.completed_at,
            message=status.message,
        ),
    )


async def create(api: Api, item: LLMService, record: Record) -> Record:
    """Make the object and return it as it is; its status is written apart. `ConflictError`: it is there already."""
    spec = MigrationSpec(
        service=item.metadata.name,
        node=record.node,
        deadline=record.deadline,
        source=record.source,
        cause=record.cause,
        replicas=record.replicas,
    )
    body = {
        "apiVersion": MIGRATION.api_version,
        "kind": MIGRATION.kind,
        "metadata": {
            "name": record.name,
            "namespace": item.metadata.namespace,
            "labels": {
                names.LABEL_SERVICE: item.metadata.name,
                names.LABEL_PART_OF: "medley",
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
            },
            "ownerReferences": [manifests.owner(item)],
        },
        "spec": spec.model_dump(by_alias=True, mode="json"),
    }
    return read(await api.create(MIGRATION, body, item.metadata.namespace))


async def write_status(api: Api, item: LLMService, record: Record) -> None:
    """Write what a record says; `ConflictError` if the object of this name is another one by now."""
    meta = {"name": record.name, "namespace": item.metadata.namespace, "uid": record.uid}
    body = {
        "apiVersion": MIGRATION.api_version,
        "kind": MIGRATION.kind,
        "metadata": meta,
        "status": status_json(record.progress),
    }
    await api.server_side_apply(MIGRATION, body, item.metadata.namespace, "status")


async def delete(api: Api, item: LLMService, record: Record) -> None:
    """Delete the object; one that is gone already, or another of its name, is well."""
    await api.delete(MIGRATION, record.name, item.metadata.namespace, uid=record.uid)


def status_json(progress: Progress) -> dict[str, Any]:
    """Return the status to be written."""
    by_method = progress.by_method
    status = MigrationStatus(
        phase=progress.phase,
        replacements=progress.replacements,
        moves=tuple(
            MoveEntry(replica=each.replica, method=each.method, streams=each.streams) for each in progress.moves
        ),
        streams=None
        if progress.lost is None
        else Streams(
            finished=by_method[MigrationMethod.FINISH],
            carried=by_method[MigrationMethod.CARRY],
            refilled=by_method[MigrationMethod.REPREFILL],
            lost=progress.lost,
        ),
        completed_at=progress.completed_at,
        message=progress.message,
    )
    written: dict[str, Any] = status.model_dump(by_alias=True, exclude_none=True, mode="json")
    return written
