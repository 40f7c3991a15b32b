"""What a replica sustains of one size, by the latency model of its profile; called by `throughput`.

The model is believed at the slow end of its error. Beyond the steps that it was fitted to it extrapolates, a linear law
carried on: with times that grow by as much as one goes beyond, at most to `FARTHEST` times the range, and with a doubt
that names the size. Farther, nothing is said. The rate is the highest at which a single replica keeps the SLO's
percentile of requests within both bounds at once, with Poisson arrivals (`queueing`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from medley.core.latency import LatencyModel
from medley.core.profiles import FittedLatency
from medley.core.workload import Slo
from medley.planning import mixture, queueing
from medley.planning.mixture import Stream

FARTHEST = 2.0  # times the measured range


@dataclass(frozen=True, slots=True)
class Extrapolated:
    """A rate rests on steps that were not measured: `what` of them, to `reached`, measured up to `measured`."""

    input_tokens: int
    output_tokens: int
    what: str
    reached: int
    measured: int

    def __str__(self) -> str:
        return (
            f"{self.input_tokens} + {self.output_tokens} tokens are extrapolated to {self.reached} {self.what}, "
            f"measured up to {self.measured}"
        )


@dataclass(frozen=True, slots=True)
class Predicted:
    """Requests/s of one size that one replica sustains; 0: none. `doubt`: where it rests on more than was measured."""

    requests_per_second: float
    ttft_s: float  # of a request that finds the replica idle
    tpot_s: float
    doubt: Extrapolated | None
    alone: bool = True  # such a request is served within the SLO


@dataclass(frozen=True, slots=True)
class TooFarBeyond:
    """The latency model was fitted to steps so much smaller that it says nothing."""

    what: str
    reached: int
    measured: int


def believed(latency: FittedLatency, beyond: float = 1.0) -> LatencyModel:
    """Return the model that plans reckon with: slow by its error, running no more at once than it may be trusted for.

    `beyond`: how many times the measured range a size is. What grows faster than in line with the tokens (attention
    of a prompt) at most multiplies their time by that.
    """
    model = latency.cautious((1 + latency.error) * beyond - 1)
    return replace(model, max_running=min(model.max_running, max(1, int(FARTHEST * latency.largest_sequences))))


def predicted(latency: FittedLatency, slo: Slo, input_tokens: int, output_tokens: int) -> Predicted | TooFarBeyond:
    """Return what one replica sustains of requests of one size, had it no other traffic."""
    reaches = (
        (
            "prompt tokens in a step",
            min(input_tokens, latency.model.max_batched_tokens),
            latency.largest_prefill_tokens,
        ),
        ("tokens of context", input_tokens + output_tokens, latency.largest_context_tokens),
    )
    what, reached, measured = max(reaches, key=lambda reach: reach[1] / reach[2])
    beyond = max(1.0, reached / measured)
    if beyond > FARTHEST:
        return TooFarBeyond(what, reached, measured)
    model = believed(latency, beyond)
    rate = _sustained(model, slo, input_tokens, output_tokens)
    running = round(_running(model, rate, input_tokens, output_tokens))
    doubt = None
    if beyond > 1:
        doubt = Extrapolated(input_tokens, output_tokens, what, reached, measured)
    elif running > latency.largest_sequences:
        doubt = Extrapolated(input_tokens, output_tokens, "requests at once", running, latency.largest_sequences)
    first = math.ceil(input_tokens / model.max_batched_tokens) * model.step_s + model.per_prefill_token_s * input_tokens
    alone = mixture.serves(model, slo, input_tokens, output_tokens)
    return Predicted(
        rate, ttft_s=first, tpot_s=model.step(0, 1, input_tokens + output_tokens / 2), doubt=doubt, alone=alone
    )


def _sustained(model: LatencyModel, slo: Slo, input_tokens: int, output_tokens: int) -> float:
    if not mixture.serves(model, slo, input_tokens, output_tokens):
        return 0.0
    alone = (Stream(input_tokens, output_tokens, 1.0),)
    most = mixture.capacity(model, slo, alone)
    found = queueing.utilisation(model, slo, alone, replicas=1)
    return 0.0 if most is None or found is None else most * found.value


def _running(model: LatencyModel, rate: float, input_tokens: int, output_tokens: int) -> float:
    """Return how many requests decode at once, all but one time in forty: two deviations of Poisson above the mean.

    The mean is Little's law, with steps as long as their work needs.
    """
    left = 1 - rate * mixture.work_s(model, input_tokens, output_tokens)
    mean = rate * output_tokens * model.step_s / left if left > 0 else float(model.max_running)
    return min(mean + 2 * math.sqrt(mean), model.max_running)
