"""What `kubectl explain` says of a quantity names its unit, or says that it is a count of something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from medley.api import crd

# Names of things, though a pattern restricts them, and ranks, which have no unit.
NAMES = {"name", "resourceName", "path", "priority"}
UNIT = re.compile(
    r"USD per hour|requests per second|[Mm]icroseconds|percent|Percent|tokens|Tokens|with its unit|per node and hour"
    r"|[Nn]umber of|in Mi, Gi or Ti|[Ff]raction|weights|Index of|metadata\.generation|[Rr]eplicas (?:that|wanted)"
)


def quantities(schema: dict[str, Any], path: str = "", said: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and description of every number, and of every text that a pattern restricts; items have their list's."""
    said = schema.get("description") or said
    if schema.get("type") in {"integer", "number"} or (schema.get("type") == "string" and "pattern" in schema):
        yield path, said
    for name, part in schema.get("properties", {}).items():
        yield from quantities(part, f"{path}.{name}")
    if "items" in schema:
        yield from quantities(schema["items"], f"{path}[]", said)


def described() -> Iterator[tuple[str, str]]:
    for resource in crd.RESOURCES:
        definition = crd.definition(resource)
        kind = definition["spec"]["names"]["kind"]
        (version,) = definition["spec"]["versions"]
        for path, said in quantities(version["schema"]["openAPIV3Schema"]):
            yield f"{kind}{path}", said


@pytest.mark.parametrize(("path", "said"), [pytest.param(path, said, id=path) for path, said in described()])
def test_a_quantity_has_a_unit(path, said):
    assert path.rsplit(".", 1)[-1] in NAMES or UNIT.search(said), f"{path}: {said!r} names no unit"
