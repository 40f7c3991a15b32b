"""Budget: what the services that name it may spend together. Platform teams write it; LLMServices name it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import Metadata, Money, Part, Rule


class BudgetSpec(Part):
    """What the nodes of all LLMServices that name this Budget in `spec.limits.budget` may cost together."""

    rules: ClassVar = (
        Rule(
            "double(self.maxUSDPerHour) > 0.0",
            lambda part: float(part.max_usd_per_hour) > 0,
            "maxUSDPerHour 0 buys nothing: raise it, or give the services that name this Budget another",
            ".maxUSDPerHour",
        ),
    )

    max_usd_per_hour: Annotated[Money, Field(alias="maxUSDPerHour")]
    """Most that the nodes of these services may cost together, in USD per hour, as a string: "60". The service of the
    highest spec.priority is planned first, each lower one within what is left."""


class Budget(Part):
    """What several LLMServices may spend together."""

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["Budget"] = "Budget"
    metadata: Metadata
    spec: BudgetSpec
    """What may be spent."""
