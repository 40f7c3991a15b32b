"""Whether an engine pod is ready; operator and routers must agree on it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def probed_ready(pod: Mapping[str, Any]) -> bool:
    """Say whether the pod's probes passed, by its kubelet's last word.

    Ready alone is not that word: the node controller makes it false for every pod of a node that it does not hear, and
    leaves ContainersReady as it was. Of a pod with readiness gates only Ready speaks.
    """
    conditions = {each["type"]: each["status"] for each in (pod.get("status") or {}).get("conditions") or ()}
    gated = bool((pod.get("spec") or {}).get("readinessGates"))
    return conditions.get("Ready") == "True" or (not gated and conditions.get("ContainersReady") == "True")
