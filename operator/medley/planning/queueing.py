"""How full replicas may be so that the SLO's percentile still holds when requests come as they do.

    found = utilisation(model, slo, mix, replicas=10, dispersion=1.0)
    found.value: the part of `mixture.capacity` that a plan may count on

Called by whoever makes an AllocationProblem (`utilisation_of`), in rounds: the answer depends on how many replicas
share the traffic, which the allocator decides. Pure. Derivation and measured error: docs/allocation.md, "Queueing".

The approximation, in short: requests present are a processor-sharing queue whose speed depends on their number (Cohen
1979), so their number is negative binomial whatever the lengths of outputs; a router that joins the shortest queue
makes n replicas one such queue of n times the speed, which is why many small replicas may be fuller than one. On top
come the prompts of others, which make the steps of a sequence longer (a compound Poisson sum over its own life), and
the wait of a prompt behind prompts (Kingman's exponential tail). Each tail is a Gamma distribution with the mean and
variance that follow, and misses are added up as if none coincided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.workload import Slo
from medley.planning import mixture
from medley.planning.mixture import Stream
from medley.planning.tails import gamma_tail

# Dispersion that joining the shortest queue adds to the arrivals at one of many replicas; 1 would be chance, 0 turns.
# Simulated: 0.4 to 0.7 for windows of 1 to 15 s, 2 to 10 replicas and CV 1 to 4 (docs/allocation.md).
_ROUTED = 0.7
# A plan takes misses to be more frequent than the formulas say, which are about right on average: what happens in one
# hour scatters about that, the more the fewer and larger the bursts are. Set once, and measured in docs/allocation.md.
_CAUTION, _TPOT_CAUTION = 1.5, 1.1
_BURSTS = 8.0  # a replica that gets so many requests more at once in a burst: twice as cautious
# Who comes after memory was full waits too, behind those who came while it was.
_AFTERMATH = 1.5
# Variance of the prompt tokens that come to one of many replicas, as part of what chance would give: the shortest queue
# is also the one with the least work. Simulated: 0.55 to 0.65 for 2 to 10 replicas.
_SMOOTHED = 0.65
# Lower limits are not given: there the error is as large as the limit (measured), and who would buy 16 times as much?
_LOWEST = 0.06
_ROUNDS = 30  # of bisection: utilisation to 1e-9


@dataclass(frozen=True, slots=True)
class Misses:
    """Parts of all requests that are expected to miss, by cause; a request may be in several."""

    tpot: float
    ttft: float
    memory: float  # come while KV memory or slots are full

    @property
    def total(self) -> float:
        """An upper estimate of all misses: they are added up as if none coincided."""
        return min(1.0, self.tpot + self.ttft + self.memory)


@dataclass(frozen=True, slots=True)
class Utilisation:
    """`value`: part of a replica's mean-value capacity that holds the percentile; `misses`: what is expected there."""

    value: float
    misses: Misses

    @property
    def bound(self) -> str:
        """What holds it down: tpot, ttft, memory, or capacity where the mean values are all there is."""
        if self.value >= 1:
            return "capacity"
        return max(("tpot", "ttft", "memory"), key=lambda name: float(getattr(self.misses, name)))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of the mix at one replica; s, tokens and tokens squared."""

    rate: float  # requests/s
    decoded: float  # mean output tokens after the first
    inputs: float  # mean prompt
    inputs_variance: float
    context: float  # mean context of a decoding sequence, over time
    context_variance: float


def utilisation(
    model: LatencyModel, slo: Slo, mix: Sequence[Stream], *, replicas: int, dispersion: float = 1.0
) -> Utilisation | None:
    """Return the utilisation at which the SLO's percentile is kept; None: not even at 6 % of capacity.

    `replicas` of one shape share the mix by joining the shortest queue. `dispersion`: variance over mean of the number
    of arrivals in windows as long as a request lives (1: Poisson; the square of the CV for renewal processes).
    """
    _check(replicas, dispersion)
    whole = mixture.capacity(model, slo, mix)
    if whole is None:
        return None
    missed = 1 - slo.percentile / 100

    def at(part: float) -> Misses:
        return misses(model, slo, _scaled(mix, part * whole * replicas), replicas=replicas, dispersion=dispersion)

    low, high = _LOWEST, 1.0
    if _planned(at(high), replicas, dispersion) <= missed:
        return Utilisation(high, at(high))
    if _planned(at(low), replicas, dispersion) > missed:
        return None
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if _planned(at(middle), replicas, dispersion) <= missed else (low, middle)
    return Utilisation(low, at(low))


def _planned(expected: Misses, replicas: int, dispersion: float) -> float:
    """Return the misses that a plan reckons with."""
    bursts = 1 + max(0.0, dispersion - 1) / replicas / _BURSTS
    return bursts * (_TPOT_CAUTION * expected.tpot + _CAUTION * (expected.ttft + expected.memory))


def misses(model: LatencyModel, slo: Slo, mix: Sequence[Stream], *, replicas: int, dispersion: float = 1.0) -> Misses:
    """Return the parts of requests that miss when `replicas` share a mix of these rates."""
    _check(replicas, dispersion)
    of = _moments(mix, replicas)
    prefill = of.rate * of.inputs * model.per_prefill_token_s  # part of the time that goes to prompts
    per_sequence = model.per_sequence_s + model.per_context_token_s * of.context
    decode = of.rate * of.decoded * per_sequence
    if prefill + decode >= 1:
        return Misses(1.0, 0.0, 0.0)
    free = 1 - prefill - decode
    # An arrival adds one request and, by its prompt, keeps others from leaving; departures are as uneven as Poisson.
    pushed = of.rate * model.per_prefill_token_s / (1 - prefill)
    jump = 1 + pushed * of.inputs
    uneven = ((dispersion - 1) * jump**2 + jump**2 + pushed**2 * of.inputs_variance + 1) / 2
    # Negative binomial over the fleet, here per replica: `uneven` is 1 for Poisson arrivals without prompts.
    present = of.rate * of.decoded * (model.step_s + per_sequence * uneven / replicas) / free
    spread = present / replicas * (1 - prefill) / free * uneven
    if replicas > 1:
        spread += 0.5  # the shortest queue is the shortest by a request or so
    seen = present + uneven / replicas
    state = _State(
        model=model,
        of=of,
        replicas=replicas,
        dispersion=dispersion,
        per_sequence=per_sequence,
        seen=seen,
        present=present,
        spread=spread,
        met=_all_busy(replicas, replicas * (present + prefill), dispersion),
    )
    total = math.fsum(each.requests_per_second for each in mix)
    tpot = ttft = 0.0
    for each in mix:
        part = each.requests_per_second / total
        if slo.tpot is not None and each.output_tokens > 1:
            tpot += part * _tpot_missed(state, slo.tpot.total_seconds(), each.output_tokens - 1)
        if slo.ttft is not None:
            ttft += part * _ttft_missed(state, slo.ttft.total_seconds(), each.input_tokens)
    return Misses(tpot, ttft, _blocked(state))


@dataclass(frozen=True, slots=True)
class _State:
    model: LatencyModel
    of: _Moments
    replicas: int
    dispersion: float
    per_sequence: float
    present: float  # decoding sequences at a replica, over time
    seen: float  # and as a request sees them
    spread: float  # variance of that number
    met: float  # part of the others that may come to a replica that has a request: the rest find one without

    @property
    def arrivals(self) -> float:
        """Dispersion of the arrivals at one replica: its part of the fleet's, and the router's unevenness."""
        return self.dispersion / self.replicas + _ROUTED * (1 - 1 / self.replicas)


def _tpot_missed(state: _State, bound_s: float, gaps: float) -> float:
    """Return P(the mean of so many gaps between tokens > bound).

    A request misses if, by the time by which its tokens are due, prompts of others and its own decoding steps took
    more than that time.
    """
    model, of = state.model, state.of
    due_s = gaps * bound_s
    # Others that come to its replica meanwhile; a burst brings more of them, the more of it falls into that time.
    others = state.met * of.rate * due_s
    during = of.rate * state.replicas * due_s
    burst = max(0.0, state.dispersion - 1) / state.replicas
    companions = burst / 2 * math.sqrt(during / (during + state.dispersion))
    prompt = model.per_prefill_token_s * of.inputs
    mean = state.per_sequence * state.seen + (others + companions) * prompt / gaps
    decoding = state.per_sequence**2 * state.spread + model.per_context_token_s**2 * state.present * of.context_variance
    squared = of.inputs_variance + of.inputs**2
    smoothed = _SMOOTHED + (1 - _SMOOTHED) / state.replicas
    prompts = (
        model.per_prefill_token_s**2
        * (others * (smoothed * squared + burst * of.inputs**2) + companions * squared + (companions * of.inputs) ** 2)
        / gaps**2
    )
    # Who brings prompts stays to decode, so both deviate together; requests present are a matter of the whole fleet,
    # prompts one of the replica.
    together = 2 * math.sqrt(decoding * prompts / state.replicas)
    return gamma_tail(mean, decoding + prompts + together, bound_s - model.step_s)


def _ttft_missed(state: _State, bound_s: float, inputs: float) -> float:
    """Return P(wait behind prompts + the step in progress + its own prompt > bound)."""
    model, of = state.model, state.of
    step = model.step_s + state.per_sequence * state.seen
    room = model.max_batched_tokens - state.seen
    if room < 1:
        return 1.0
    per_token = model.per_prefill_token_s + step / room  # in steps full of prompts
    busy = of.rate * of.inputs * per_token
    if busy >= 1:
        return 1.0
    own = model.per_prefill_token_s * inputs + step * (math.ceil(inputs / room) + 1)
    left = bound_s - own
    if left <= 0:
        return 1.0
    # Who comes before its last step starts shares that step, and makes it longer.
    last = inputs - room * (math.ceil(inputs / room) - 1)
    sharing = min(1.0, of.rate * (own - model.per_prefill_token_s * last))
    ahead = _waits(busy, per_token * of.inputs, state.arrivals, of.inputs_variance / of.inputs**2, left)
    behind = _waits(
        busy, per_token * of.inputs, state.arrivals, of.inputs_variance / of.inputs**2, left, waiting=sharing
    )
    return min(1.0, ahead + behind)


def _waiting(busy: float, arrivals: float, services: float) -> float:
    """Return P(wait > 0) of a queue G/G/1 (Whitt 1983, QNA)."""
    if arrivals >= 1:
        part = 4 * busy / (arrivals + busy**2 * (4 * arrivals + services))
    else:
        part = (1 + arrivals + busy * services) / (1 + busy * (services - 1) + busy**2 * (4 * arrivals + services))
    return min(1.0, max(0.0, busy + (arrivals - 1) * busy * (1 - busy) * part))


def _waits(
    busy: float, service_s: float, arrivals: float, services: float, longer_s: float, *, waiting: float | None = None
) -> float:
    """Return P(wait > longer_s) of a queue G/G/1: probability of waiting (Whitt 1983, QNA) and Kingman's decay.

    `arrivals`, `services`: squared coefficients of variation; `waiting`: that probability, where it is known.
    """
    if waiting is None:
        waiting = _waiting(busy, arrivals, services)
    scale_s = service_s * (arrivals + services) / (2 * (1 - busy))
    return waiting * math.exp(-longer_s / scale_s) if scale_s > 0 else 0.0


def _blocked(state: _State) -> float:
    """Return P(no memory or no slot for one more)."""
    model, of = state.model, state.of
    context = of.context + mixture.BLOCK_TOKENS / 2
    memory = gamma_tail(
        context * state.seen + of.inputs,
        context**2 * state.spread + state.present * of.context_variance,
        model.kv_tokens,
    )
    slots = gamma_tail(state.seen, state.spread, model.max_running)
    return min(1.0, _AFTERMATH * (memory + slots))


def _all_busy(replicas: int, load: float, dispersion: float) -> float:
    """Return P(none of the other replicas is idle), by Erlang's C; bursts by Hayward's fewer and larger servers."""
    servers = math.floor((replicas - 1) / max(1.0, dispersion))
    if servers < 1:
        return 1.0
    offered = load * servers / replicas
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def _moments(mix: Sequence[Stream], replicas: int) -> _Moments:
    rate = math.fsum(each.requests_per_second for each in mix)
    parts = [(each.requests_per_second / rate, each.input_tokens, each.output_tokens) for each in mix]
    inputs = math.fsum(p * i for p, i, _ in parts)
    decoded = math.fsum(p * (o - 1) for p, _, o in parts)
    by_tokens = [(p * (o - 1) / decoded if decoded else p, i, o) for p, i, o in parts]
    context = math.fsum(w * (i + o / 2) for w, i, o in by_tokens)
    return _Moments(
        rate=rate / replicas,
        decoded=decoded,
        inputs=inputs,
        inputs_variance=max(0.0, math.fsum(p * i * i for p, i, _ in parts) - inputs**2),
        context=context,
        context_variance=max(0.0, math.fsum(w * (i * i + i * o + o * o / 3) for w, i, o in by_tokens) - context**2),
    )


def _scaled(mix: Sequence[Stream], factor: float) -> tuple[Stream, ...]:
    return tuple(Stream(each.input_tokens, each.output_tokens, each.requests_per_second * factor) for each in mix)


def _check(replicas: int, dispersion: float) -> None:
    if replicas < 1:
        raise InvalidInputError("replicas", f"expected 1 or more, got {replicas}")
    if not math.isfinite(dispersion) or dispersion <= 0:
        raise InvalidInputError("dispersion", f"expected a number above 0 (1: Poisson), got {dispersion}")
