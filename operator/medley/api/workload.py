"""The traffic that an LLMService is planned for: its rate and its sizes. Part of `llmservice.py`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley.api.base import Part, Rule, exactly_one
from medley.core.service import RoutingKnowledge, WorkloadSource

Edges = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=32)]


def _ascends(attribute: str) -> Callable[[Part], bool]:
    return lambda part: all(a < b for a, b in pairwise(getattr(part, attribute)))


class HistogramSpec(Part):
    """Request sizes spelt out."""

    rules: ClassVar = (
        *(
            Rule(
                f"self.{name}.isSorted() && self.{name}.all(edge, self.{name}.exists_one(other, other == edge))",
                _ascends(attribute),
                f"{name} must ascend, each edge once: write the upper edge of every range, smallest first",
                f".{name}",
            )
            for name, attribute in (("inputEdges", "input_edges"), ("outputEdges", "output_edges"))
        ),
        Rule(
            "self.weights.size() == self.inputEdges.size() && "
            "self.weights.all(row, row.size() == self.outputEdges.size())",
            lambda part: (
                len(part.weights) == len(part.input_edges)
                and all(len(row) == len(part.output_edges) for row in part.weights)
            ),
            "weights needs one row per input edge, each with one weight per output edge",
            ".weights",
        ),
        Rule(
            "self.weights.exists(row, row.exists(weight, weight > 0.0))",
            lambda part: any(weight > 0 for row in part.weights for weight in row),
            "all weights are 0: give at least one size a weight above 0",
            ".weights",
        ),
    )

    input_edges: Edges
    """Upper edges, inclusive, of the ranges of input tokens, ascending."""
    output_edges: Edges
    """Upper edges, inclusive, of the ranges of output tokens, ascending."""
    weights: Annotated[
        tuple[Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1, max_length=32)], ...],
        Field(min_length=1, max_length=32),
    ]
    """Relative weights: one row per input range, one number per output range. They need not add up to 1."""


class Distribution(Part):
    """How request sizes are distributed."""

    rules: ClassVar = (exactly_one("preset", "histogram", remedy="for example preset: chat"),)

    preset: Literal["chat", "summarization", "code"] | None = None
    """A distribution that comes with medley."""
    histogram: HistogramSpec | None = None
    """Weights per range of input and output tokens."""


class Workload(Part):
    """The traffic to plan for."""

    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 1
    """Expected rate, in requests per second."""
    distribution: Distribution = Distribution(preset="chat")
    """Expected sizes."""
    source: WorkloadSource = WorkloadSource.OBSERVED
    """Observed: what routers measured, the forecast until they have seen enough. Forecast: always the forecast."""
    routing: RoutingKnowledge = RoutingKnowledge.BLIND
    """Blind: plan for routers as they are, which see input tokens and max_tokens but not how long an answer becomes.
    Oracle: plan as if they knew, as the Mélange paper does; cheaper on paper alone, for comparison."""
