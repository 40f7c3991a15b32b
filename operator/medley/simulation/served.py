"""What requests met: TTFT, TPOT and attainment, by the definitions of the SLO.

Made by `fleet.serve`; read by `medley.cli`, the benchmarks and tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medley.core.errors import InvalidInputError
from medley.core.workload import Slo
from medley.simulation.arrivals import Requests, Seconds, Tokens

Kept: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """The requests of a run, each with its first and last token; arrays of one length, in order of arrival."""

    requests: Requests
    first_token_s: Seconds
    last_token_s: Seconds
    replica: Tokens  # index of the replica that served it
    preemptions: int  # over the whole run

    @property
    def ttft_s(self) -> Seconds:
        """From arrival at the router to the first token."""
        return self.first_token_s - self.requests.arrival_s

    @property
    def tpot_s(self) -> Seconds:
        """(Last token - first token) / (tokens - 1); 0 for one token, which has no time per further token."""
        gaps = self.requests.output_tokens - 1
        return (self.last_token_s - self.first_token_s) / np.maximum(gaps, 1)

    def attains(self, slo: Slo) -> Kept:
        """Return for each request whether both bounds hold."""
        kept = np.ones(len(self.requests), dtype=bool)
        if slo.ttft is not None:
            kept &= self.ttft_s <= slo.ttft.total_seconds()
        if slo.tpot is not None:
            kept &= self.tpot_s <= slo.tpot.total_seconds()
        return kept

    def attainment(self, slo: Slo) -> float:
        """Return the fraction of requests for which both bounds hold."""
        if not len(self.requests):
            raise InvalidInputError("served", "expected at least one request to have an attainment")
        return float(self.attains(slo).mean())

    def after(self, first: int) -> Served:
        """Return all but the first so many requests, which met an empty fleet."""
        asked = self.requests
        return replace(
            self,
            requests=Requests(
                asked.arrival_s[first:],
                asked.input_tokens[first:],
                asked.output_tokens[first:],
                None if asked.max_tokens is None else asked.max_tokens[first:],
            ),
            first_token_s=self.first_token_s[first:],
            last_token_s=self.last_token_s[first:],
            replica=self.replica[first:],
        )
