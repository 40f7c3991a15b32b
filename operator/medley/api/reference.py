"""The field tables of docs/objects.md, written from the structural schemas. Called by `crd.py` alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MARKER = "<!-- Generated below from the models in operator/medley/api by `make generate`; do not edit. -->\n"
_BOUNDS = (("minimum", "≥", ">"), ("maximum", "≤", "<"))
_CEL_MESSAGES = ("message", "messageExpression")


def section(kind: str, schema: dict[str, Any]) -> str:
    """Return the Markdown of one kind: what a person writes, and what the API server refuses beyond types."""
    spec = schema["properties"]["spec"]
    lines = [f"## {kind}", "", spec["description"], "", "| field | type | default | meaning |", "|---|---|---|---|"]
    lines += [_row(path, field, required=required) for path, field, required in _fields(spec, "")]
    refusals = list(_refusals(schema, ""))
    if refusals:
        lines += ["", "Refused, with these words:", ""]
        lines += [f"* `{path}`: {message}" for path, message in refusals]
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any], above: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        path = f"{above}{name}"
        yield path, field, name in required
        yield from _fields(field, f"{path}.")
        yield from _fields(field.get("items", {}), f"{path}[].")


def _row(path: str, field: dict[str, Any], *, required: bool) -> str:
    default = "required" if required else _default(field)
    return f"| `{path}` | {_type(field)} | {default} | {_cell(field.get('description', ''))} |"


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default is None or isinstance(default, dict):  # that of an object is told by its fields
        return ""
    return f"`{default}`" if default != "" else "empty"


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if field.get("x-kubernetes-preserve-unknown-fields"):
        return "any object"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object" and "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}"
    words = [{"date-time": "time"}.get(field.get("format", ""), field["type"])]
    for bound, inclusive, exclusive in _BOUNDS:
        if bound in field:
            words.append(f"{exclusive if field.get(f'exclusive{bound.capitalize()}') else inclusive} {field[bound]}")
    return " ".join(words)


def _refusals(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        place = f"{path}{rule.get('fieldPath', '')}".lstrip(".") or "metadata.name"
        yield place, _cell(next(rule[key] for key in _CEL_MESSAGES if key in rule))
    for name, field in schema.get("properties", {}).items():
        if name != "status":
            yield from _refusals(field, f"{path}.{name}")
            yield from _refusals(field.get("items", {}), f"{path}.{name}[]")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
