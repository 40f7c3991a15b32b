"""How a cloud says that it takes a node back, in the forms that `interrupt --as` knows; used by `cloud`.

`karpenter` does what Karpenter's AWS provider does on a spot notice: the Event SpotInterrupted on NodeClaim and Node,
and the NodeClaim is deleted. `nth` does what AWS Node Termination Handler does in its cordon-only mode: a taint, a
cordon and an Event. `none`: nothing.
"""

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from e2e.stage.api import CONFLICT, Api, ApiError
from e2e.stage.processes import StageError

NODES = "/api/v1/nodes"
NODE_CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"
NTH_TAINT = "aws-node-termination-handler/spot-itn"


class Form(StrEnum):
    """The forms in which a notice comes."""

    KARPENTER = "karpenter"
    NTH = "nth"
    NONE = "none"


def post(api: Api, node: str, form: Form) -> None:
    """Give notice; giving it again changes nothing. Raise StageError if the node cannot have this form."""
    match form:
        case Form.KARPENTER:
            _as_karpenter(api, node)
        case Form.NTH:
            _as_nth(api, node)
        case Form.NONE:
            return


def is_ready(node: dict[str, Any]) -> bool:
    """Say whether the Node's kubelet was heard lately."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node.get("status", {}).get("conditions", []))


def node_claim(api: Api, node: str) -> dict[str, Any] | None:
    """Return the NodeClaim behind a node, if Karpenter made it."""
    return next((c for c in api.items(NODE_CLAIMS) if c.get("status", {}).get("nodeName") == node), None)


def check(api: Api, node: str, form: Form) -> None:
    """Say no before anything is written: no such node, or no NodeClaim for Karpenter to give notice by."""
    if api.find(f"{NODES}/{node}") is None:
        names = ", ".join(sorted(n["metadata"]["name"] for n in api.items(NODES))) or "none"
        raise StageError(f"interrupting {node}: there is no such node; there are: {names}")
    if form is Form.KARPENTER and node_claim(api, node) is None:
        raise StageError(f"interrupting {node}: Karpenter did not make it (no NodeClaim); use --as nth or --as none")


def _as_karpenter(api: Api, node: str) -> None:
    claim = node_claim(api, node)
    if claim is None or "deletionTimestamp" in claim["metadata"]:
        return
    said = "Spot interruption warning was triggered"
    for about in (claim, api.get(f"{NODES}/{node}")):
        kind = "NodeClaim" if about is claim else "Node"
        version = "karpenter.sh/v1" if about is claim else "v1"
        _event(
            api, about["metadata"], kind=kind, api_version=version, reason="SpotInterrupted", said=said, by="karpenter"
        )
    api.delete(f"{NODE_CLAIMS}/{claim['metadata']['name']}")


def _as_nth(api: Api, node: str) -> None:
    found = api.get(f"{NODES}/{node}")
    taints = found["spec"].get("taints", [])
    if any(taint["key"] == NTH_TAINT for taint in taints):
        return None
    identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, found["metadata"]["uid"]))
    taint = {"key": NTH_TAINT, "value": identity, "effect": "NoSchedule"}
    version = {"resourceVersion": found["metadata"]["resourceVersion"]}  # another taint set meanwhile must not be lost
    try:
        api.patch(f"{NODES}/{node}", {"metadata": version, "spec": {"taints": [*taints, taint], "unschedulable": True}})
    except ApiError as error:
        if error.status != CONFLICT:
            raise
        return _as_nth(api, node)
    said = "Spot Instance interruption notice was received"
    _event(
        api, found["metadata"], kind="Node", api_version="v1", reason="SpotInterruption", said=said,
        by="aws-node-termination-handler",
    )  # fmt: skip
    return None


def _event(api: Api, about: dict[str, Any], *, kind: str, api_version: str, reason: str, said: str, by: str) -> None:
    """Post a v1 Event about a cluster-scoped object, named after object and reason so that there is one of it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{about['name']}.{reason.lower()}", "namespace": "default"},
        "involvedObject": {"apiVersion": api_version, "kind": kind, "name": about["name"], "uid": about["uid"]},
        "reason": reason,
        "message": said,
        "type": "Warning",
        "source": {"component": by},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        api.create("/api/v1/namespaces/default/events", event)
    except ApiError as error:
        if error.status != CONFLICT:
            raise
