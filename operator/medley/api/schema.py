"""From pydantic models to structural schemas: the dialect of OpenAPI v3.0 that CustomResourceDefinitions speak.

Kubernetes wants no `$ref`, no `const`, no unions but int-or-string, `minimum` with a boolean `exclusiveMinimum`, and
defaults that leave out what is absent. Called by `crd.py` alone.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

_METADATA = {"type": "object"}  # the API server knows the rest
# Kept as they are; whatever else appears is a mistake that must not reach a cluster.
_PLAIN = frozenset(
    {
        "type",
        "format",
        "description",
        "enum",
        "default",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
        "anyOf",  # of integer and string, beside x-kubernetes-int-or-string
    }
)
_DROPPED = frozenset({"title", "$defs"})
_EXTRA = (
    "additionalProperties"  # as a boolean: the API server prunes unknown fields, kubectl's strict mode refuses them
)


class _Defaults(GenerateJsonSchema):
    """Defaults of objects are written out in full, since CEL rules see a default before the API server completes it."""

    def encode_default(self, dft: Any) -> Any:
        return _written(dft) if isinstance(dft, BaseModel) else super().encode_default(dft)


def _written(part: BaseModel) -> dict[str, Any]:
    """Return a value as a person would write it: nothing that is absent or empty, unless it was set on purpose."""
    dumped = part.model_dump(mode="json", by_alias=True, exclude_none=True)
    fields = type(part).model_fields
    written: dict[str, Any] = {}
    for attribute, field in fields.items():
        value, key = getattr(part, attribute), str(field.alias)
        entry = _written(value) if isinstance(value, BaseModel) else dumped.get(key)
        if entry not in (None, {}, []) or (value is not None and attribute in part.model_fields_set):
            written[key] = entry
    return written


def structural(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of an object: apiVersion, kind, metadata, spec and, where it has one, status."""
    document = kind.model_json_schema(by_alias=True, schema_generator=_Defaults)
    schema = _structural(document, document.get("$defs", {}))
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["properties"]["metadata"] = _METADATA
    if "status" in schema["properties"]:
        schema["properties"]["status"] = _without_defaults(schema["properties"]["status"])
    schema["required"] = ["spec"]
    return schema


def _structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for key, value in _without_null(_inlined(node, definitions), definitions).items():
        schema |= _translated(key, value, definitions)
    if _says_nothing(schema):
        del schema["default"]
    return schema


def _translated(key: str, value: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if key in _DROPPED or (key == "default" and value is None) or (isinstance(value, bool) and key == _EXTRA):
        return {}
    if key in _PLAIN or key.startswith("x-kubernetes-"):
        return {key: value}
    match key:
        case "exclusiveMinimum" | "exclusiveMaximum":
            return {key.removeprefix("exclusive").lower(): value, key: True}
        case "const":
            return {"enum": [value]}
        case "properties":
            return {key: {name: _structural(each, definitions) for name, each in value.items()}}
        case "items" | "additionalProperties":
            return {key: _structural(value, definitions)}
        case _:
            raise ValueError(f"{key} has no place in a structural schema: {value}")


def _says_nothing(schema: dict[str, Any]) -> bool:
    """Say whether a default only writes down an emptiness that means the same as absence."""
    if schema.get("default") == [] and schema.get("type") == "array":
        return True
    filled = any("default" in each for each in schema.get("properties", {}).values())
    return schema.get("default") == {} and not filled


def _without_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a status schema without defaults: what the operator did not write is not known."""
    bare = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in bare:
        bare["properties"] = {name: _without_defaults(each) for name, each in bare["properties"].items()}
    for nested in ("items", "additionalProperties"):
        if nested in bare:
            bare[nested] = _without_defaults(bare[nested])
    return bare


def _inlined(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Replace a reference by what it names; what stands beside the reference is more particular and wins."""
    reference = node.get("$ref")
    if reference is None:
        return node
    target = definitions[str(reference).removeprefix("#/$defs/")]
    return _inlined(target, definitions) | {key: value for key, value in node.items() if key != "$ref"}


def _without_null(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Turn `X | None` into X: in a manifest, None is a field that is absent."""
    if "anyOf" not in node or node.get("x-kubernetes-int-or-string"):
        return node
    others = [each for each in node["anyOf"] if each.get("type") != "null"]
    if len(others) != 1:
        raise ValueError(f"a union has no place in a structural schema: {node}")
    return _inlined(others[0], definitions) | {key: value for key, value in node.items() if key != "anyOf"}
