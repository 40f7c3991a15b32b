"""Server-side apply that writes only if the live object does not already say what we want.

Called by `handlers/acting.py`. "Already says" is `covers`: every field we want is there with our value; fields that the
server or others added do not matter. What we no longer want cannot be seen that way, so each object carries a hash of
all that we want (`stamped`): a field that leaves the manifest changes the hash, and the apply that follows removes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from medley.core import names
from medley.kube.api import Api, Kind

# Fields by which Kubernetes tells the items of a list apart; the first that all items have is the key.
_LIST_KEYS = ("name", "uid", "containerPort", "port", "mountPath", "topologyKey", "type", "key")


async def ensured(api: Api, kind: Kind, manifest: Mapping[str, Any], namespace: str | None = None) -> bool:
    """Make the live object contain `manifest`; True if that took a write."""
    desired = stamped(manifest)
    live = await api.get(kind, desired["metadata"]["name"], namespace)
    if live is not None and covers(live, desired):
        return False
    await api.server_side_apply(kind, desired, namespace)
    return True


def stamped(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with the hash of itself as an annotation."""
    metadata = dict(manifest["metadata"])
    metadata["annotations"] = {**metadata.get("annotations", {}), names.LABEL_TEMPLATE_HASH: digest(manifest)}
    return {**manifest, "metadata": metadata}


def digest(manifest: Mapping[str, Any]) -> str:
    """Return ten hexadecimal digits that stand for the manifest, whatever the order of its keys."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def covers(live: Any, desired: Any) -> bool:
    """Say whether every field of `desired` is in `live` with the same value.

    Lists of keyed objects are compared by key, other lists whole.
    """
    match desired:
        case Mapping():
            return isinstance(live, Mapping) and all(
                (key in live and covers(live[key], value)) or (key not in live and _is_nothing(value))
                for key, value in desired.items()
            )
        case str():
            return bool(live == desired)
        case Sequence():
            return _covers_list(live, desired)
        case _:
            return bool(live == desired)


def _is_nothing(value: Any) -> bool:
    # The server drops empty lists and maps that we send.
    return isinstance(value, (Mapping, list, tuple)) and not value


def _covers_list(live: Any, desired: Sequence[Any]) -> bool:
    if not isinstance(live, list):
        return False
    key = _list_key(desired)
    if key is None or _list_key(live) != key:
        return len(live) == len(desired) and all(map(covers, live, desired))
    by_key = {item[key]: item for item in live}
    return all(item[key] in by_key and covers(by_key[item[key]], item) for item in desired)


def _list_key(items: Sequence[Any]) -> str | None:
    if not items or not all(isinstance(item, Mapping) for item in items):
        return None
    for key in _LIST_KEYS:
        values = [item.get(key) for item in items]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None
