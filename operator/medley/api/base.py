"""What all objects share: strictness, camelCase, canonical text forms, and rules that are CEL and Python at once.

Every model of `medley.api` derives from `Part` (what a person writes) or `Observed` (what medley writes). A rule is
stated once, with one message, and holds at both borders: the API server evaluates its CEL form at `kubectl apply`;
pydantic evaluates its Python form where no API server is at hand (`medley plan`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from medley.core import units

Duration = Annotated[str, Field(pattern=units.DURATION_PATTERN, max_length=16)]
Percent = Annotated[str, Field(pattern=units.PERCENT_PATTERN, max_length=16)]
Money = Annotated[str, Field(pattern=units.MONEY_PATTERN, max_length=24)]
Memory = Annotated[str, Field(pattern=units.MEMORY_PATTERN, max_length=16)]
Text = Annotated[str, Field(min_length=1, max_length=253)]
Quantity = Annotated[
    int | str, WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True})
]
AnyObject = Annotated[
    dict[str, JsonValue], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on one model.

    `message` says what is wrong and what to write instead; `{field}` stands for the value of a field of the same model.
    `cel` is None where the structural schema alone already makes the API server refuse (duplicates in a set or map).
    """

    cel: str | None
    holds: Callable[[Any], bool]
    message: str
    field_path: str = ""  # below the model, as the API server wants it: ".maxReplicas"

    def validation(self) -> dict[str, str]:
        """Return the entry of `x-kubernetes-validations`."""
        if self.cel is None:
            raise ValueError(f"rule has no CEL form: {self.message}")
        entry = {"rule": self.cel}
        if _PLACEHOLDER.search(self.message):
            text = _PLACEHOLDER.sub("%s", self.message.replace("%", "%%"))
            values = ", ".join(f"self.{field}" for field in _PLACEHOLDER.findall(self.message))
            entry["messageExpression"] = f"{text!r}.format([{values}])"
        else:
            entry["message"] = self.message
        return entry | ({"fieldPath": self.field_path} if self.field_path else {})

    def said_of(self, subject: BaseModel) -> str:
        """Return the message about `subject`."""
        values = subject.model_dump(by_alias=True, mode="json")
        return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), self.message)


def _with_rules(schema: dict[str, Any], kind: type[Any]) -> None:
    entries = [rule.validation() for rule in kind.rules if rule.cel is not None]
    entries += [dict(entry) for entry in kind.transitions]
    if entries:
        schema["x-kubernetes-validations"] = entries


class Part(BaseModel):
    """A part of an object that a person writes: unknown fields are refused, values do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        alias_generator=to_camel,
        use_attribute_docstrings=True,
        json_schema_extra=_with_rules,
        allow_inf_nan=False,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    transitions: ClassVar[tuple[dict[str, str], ...]] = ()  # rules on changes: only the API server sees the old object

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise PydanticCustomError("rule", "{said}", {"said": rule.said_of(self), "path": rule.field_path})
        return self


class LocalName(Part):
    """Names an object of the same namespace."""

    name: Text
    """Name of the object."""


class KeyRef(Part):
    """Names one key of an object of the same namespace."""

    name: Text
    """Name of the object."""
    key: Text
    """Key within the object."""


class Observed(Part):
    """A part of an object that medley writes: fields of another version of medley are passed over."""

    model_config = ConfigDict(extra="ignore")


class Metadata(BaseModel):
    """The part of an object's metadata that medley reads."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, alias_generator=to_camel)

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})
    finalizers: tuple[str, ...] = ()
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class ConditionEntry(Observed):
    """One condition, as Kubernetes' metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Type of condition, in CamelCase, of positive polarity."""
    status: Annotated[str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})]
    """True, False or Unknown."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, in CamelCase, for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why and what to do about it, for people."""
    last_transition_time: datetime
    """When the status last changed."""
    observed_generation: int = 0
    """The metadata.generation that this condition is about."""


def credible(field: str, pattern: str, read_as: str) -> Rule:
    """Return the rule that an optional duration does not match the `pattern` of those that nobody means."""
    return Rule(
        f"!has(self.{field}) || !self.{field}.matches('{pattern}')",
        lambda part: not re.fullmatch(pattern, getattr(part, field) or ""),
        f"{field} {{{field}}} is {read_as}: another unit is meant, such as 100ms (m is minutes)",
        f".{field}",
    )


def exactly_one(*fields: str, remedy: str) -> Rule:
    """Return the rule that one of the optional `fields` is set and the others are not."""
    cel = f"[{', '.join(f'has(self.{field})' for field in fields)}].filter(given, given).size() == 1"
    named = {field: re.sub(r"([A-Z])", lambda capital: f"_{capital[1].lower()}", field) for field in fields}
    return Rule(
        cel=cel,
        holds=lambda part: sum(getattr(part, attribute) is not None for attribute in named.values()) == 1,
        message=f"set exactly one of {', '.join(fields)}: {remedy}",
    )


def unique(values: tuple[Any, ...]) -> bool:
    """Say whether no value occurs twice."""
    return len(set(values)) == len(values)
