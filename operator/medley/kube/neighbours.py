"""The other services of a cluster, as a pass over one of them sees them: what they ask for, hold and pay from.

Called by `handlers/observing.py` and `medley plan --diff`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from medley.api import convert
from medley.api.llmservice import LLMService
from medley.core import names
from medley.core.accelerators import OfferingKey
from medley.core.errors import InvalidInputError
from medley.kube.replicas import offering_of
from medley.kube.status import standing
from medley.planning.fleet import Neighbour

Json = Mapping[str, Any]


def neighbours(others: Iterable[Json], pods: Iterable[Json]) -> tuple[Neighbour, ...]:
    """Return the other services, and what they hold; one that is not understood asks for nothing, yet holds and pays.

    `others`: their LLMServices. `pods`: their engine pods.
    """
    held: dict[tuple[str, str], Counter[OfferingKey]] = {}
    for pod in pods:
        if pod.get("spec", {}).get("nodeName"):
            key = (pod["metadata"]["namespace"], pod["metadata"]["labels"].get(names.LABEL_SERVICE, ""))
            held.setdefault(key, Counter())[offering_of(pod)] += 1
    wanting: dict[tuple[str, str], LLMService] = {}
    paying: dict[tuple[str, str], str | None] = {}  # also those that are deleted, while they hold something
    for other in others:
        key = (other["metadata"]["namespace"], other["metadata"]["name"])
        paying[key] = ((other.get("spec") or {}).get("limits") or {}).get("budget")
        if "deletionTimestamp" not in other["metadata"]:
            with suppress(InvalidInputError):  # its own pass says so
                wanting[key] = convert.read_llm_service(other)
    found = []
    for key in sorted(held.keys() | wanting.keys()):
        name, holds, item = "/".join(key), tuple(sorted(held.get(key, Counter()).items())), wanting.get(key)
        if item is None:
            found.append(Neighbour(name, None, holds, budget=paying.get(key)))
        else:
            stands = standing(item)
            found.append(
                Neighbour(name, convert.service(item), holds, stands.unavailable, stands.traffic, paying.get(key))
            )
    return tuple(found)
