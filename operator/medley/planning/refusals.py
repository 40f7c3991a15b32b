"""Why a shape serves no requests of some size: one short reason, what is in the way and its number first.

Called by `explain`. What was found is `throughput.Unable`; how people read it in tables and conditions is said here.
Sizes are input + output tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import assert_never

from medley.core.units import figure
from medley.core.workload import Slo
from medley.planning.predicted import FARTHEST, TooFarBeyond
from medley.planning.throughput import NotMeasured, OutOfReach, PercentileMissing, SloMissed, TooLong, Unable


def reason(unable: Unable, slo: Slo, size: tuple[int, int]) -> str:
    """Return why requests of up to `size` are not served."""
    match unable:
        case OutOfReach():
            return _out_of_reach(unable, slo)
        case SloMissed(requests_per_second, ttft, tpot):
            found, limit = _missed(slo, ttft, tpot)
            rate = figure(requests_per_second)
            return f"SLO: {found} at {rate} requests/s of {_tokens(size)}, the lowest rate measured, {limit}"
        case NotMeasured(input_tokens, output_tokens, largest):
            return f"profile: measured up to {_tokens(largest)}, not at {_tokens((input_tokens, output_tokens))}"
        case PercentileMissing(promised, measured):
            return f"profile: measured up to percentile {measured:g}, the SLO promises {promised:g}"
        case TooFarBeyond(what, reached, measured):
            return f"profile: measured up to {measured:,} {what}, {reached:,} are more than {FARTHEST:g} times that"
        case TooLong(tokens, holds):
            return f"length: {tokens:,} tokens, a replica holds {holds:,}"
        case _:
            assert_never(unable)


def _out_of_reach(unable: OutOfReach, slo: Slo) -> str:
    request = f"request of {_tokens(unable.size)}"
    if unable.alone:
        return (
            f"SLO: over {100 - slo.percentile:.3g}% miss it as soon as one {request} meets another "
            f"(alone: TTFT {_ms(unable.ttft)}, TPOT {_ms(unable.tpot)})"
        )
    if sum(unable.size) > unable.holds_tokens:
        needs, has = f"{sum(unable.size):,}", f"{unable.holds_tokens:,}"
        return f"memory: needs {needs} tokens of KV cache for one {request}, has {has}"
    found, limit = _missed(slo, unable.ttft, unable.tpot)
    return f"SLO: {found} at one {request}, {limit}"


def in_the_way(unable: Iterable[Unable]) -> str:
    """Return what becomes of requests that a shape does not serve, in a few words."""
    kinds = {_kind(each) for each in unable}
    return kinds.pop() if len(kinds) == 1 else "cannot be served on it"


def _kind(unable: Unable) -> str:
    match unable:
        case OutOfReach(size=size, holds_tokens=holds) if sum(size) > holds:
            return "does not fit its memory"
        case OutOfReach() | SloMissed():
            return "misses the SLO on it"
        case NotMeasured() | PercentileMissing() | TooFarBeyond():
            return "is not covered by its profile"
        case TooLong():
            return "is too long for it"
        case _:
            assert_never(unable)


def _missed(slo: Slo, ttft: timedelta, tpot: timedelta) -> tuple[str, str]:
    """Return the latencies that are above their bounds, and these bounds."""
    both = (("TTFT", ttft, slo.ttft), ("TPOT", tpot, slo.tpot))
    missed = [(name, found, limit) for name, found, limit in both if limit is not None and found > limit]
    limits = " and ".join(_ms(limit) for _, _, limit in missed)
    return " and ".join(f"{name} {_ms(found)}" for name, found, _ in missed), f"limit {limits}"


def _tokens(size: tuple[int, int]) -> str:
    return "{} + {} tokens".format(*size)


def _ms(value: timedelta) -> str:
    return f"{figure(value / timedelta(milliseconds=1))} ms"
