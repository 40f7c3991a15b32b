"""A proposal as people and routers see it: `LLMService.status.plan`, money and shares rounded for reading.

Called by `kube/status.py`, which writes it, and by `cli/planned.py`, which prints it, so that the operator and
`medley plan` cannot say different things of one plan. Pure: no I/O and no clock, knows `planning` and `api` alone. It
lives here because `planning` and `api` must not know each other, and the statuses of the API server are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from medley.api.llmservice_status import Infeasible, NotUsed, PlannedOffering, PlanStatus, Routing, RoutingShare
from medley.core.accelerators import OfferingKey
from medley.core.service import RoutingKnowledge
from medley.core.units import figure
from medley.planning import problem
from medley.planning.ignorance import for_all_limits
from medley.planning.problem import Share
from medley.planning.proposal import Proposal

_PARTS = 10_000  # shares have four decimals
_NOISE_DIGITS = 5  # of a part: equal shares differ in a solver's last digits, which must not decide


def plan_status(proposal: Proposal, ready: Mapping[OfferingKey, int]) -> PlanStatus:
    """Return the plan but for `computed_at`, which is about the plan before it.

    `ready`: replicas that serve and are not leaving, by offering; none where there is no cluster.
    """
    grid, prices = proposal.question.problem.demand.grid, proposal.usd_per_replica_hour
    reference, saved = proposal.on_demand_usd_per_hour, saved_percent(proposal)
    return PlanStatus(
        offerings=tuple(
            PlannedOffering(
                shape=key.shape.key,
                market=key.market,
                zone=key.zone,
                replicas=count,
                ready=ready.get(key, 0),
                usd_per_hour=money(prices[key] * count),
            )
            for key, count in sorted(proposal.wanted.items())
        ),
        routing=Routing(
            input_edges=grid.input_edges,
            output_edges=grid.output_edges,
            shares=tuple(_shares(_routed(proposal))),
        ),
        usd_per_hour=money(proposal.usd_per_hour),
        on_demand_usd_per_hour="" if reference is None else money(reference),
        saved_percent="" if saved is None else f"{saved}%",
        gap=f"{proposal.allocation.gap:.2%}",
        not_used=tuple(
            NotUsed(accelerator_class=each.accelerator_class, market=each.market, reason=each.message)
            for each in proposal.not_used
            if each.zone is None
        ),
        doubts=proposal.doubts,
        infeasible=None if proposal.infeasible is None else _infeasible(proposal.infeasible),
    )


def saved_percent(proposal: Proposal) -> int | None:
    """Return the saving against the same demand on on-demand capacity.

    None where there is nothing to compare: without spot the demand cannot be met or costs nothing, or the plan serves
    only a part of it.
    """
    reference = proposal.on_demand_usd_per_hour
    if not reference or proposal.infeasible is not None:
        return None
    return round(100 * (1 - proposal.usd_per_hour / reference))


def money(usd: float) -> str:
    """Return dollars with two decimals."""
    return f"{usd:.2f}"


def _infeasible(found: problem.Infeasible) -> Infeasible:
    return Infeasible(
        unmet_requests_per_second=figure(found.unmet_requests_per_second).replace(",", ""),
        # A bound that binds together with this one and with that one is named once.
        binding=", ".join(dict.fromkeys(each.where for each in found.bindings)),
        remedy="; ".join(each.message for each in found.bindings),
    )


def _routed(proposal: Proposal) -> Iterable[Share]:
    shares = proposal.allocation.shares
    if proposal.question.routing is RoutingKnowledge.ORACLE:
        return shares
    return for_all_limits(shares, proposal.question.problem.demand.grid)


def _shares(shares: Iterable[Share]) -> Iterator[RoutingShare]:
    """Yield the shares with four decimals so that a bucket's still add up to 1; what rounds to 0 is left out.

    All are rounded down, and what is missing goes to those that lost most (the method of largest remainders).
    """
    for bucket, together in groupby(shares, key=lambda each: each.bucket):
        exact = {each.shape: round(each.share * _PARTS, _NOISE_DIGITS) for each in together}
        parts = {shape: int(value) for shape, value in exact.items()}
        losers = sorted(exact, key=lambda shape: (parts[shape] - exact[shape], shape))
        for shape in losers[: _PARTS - sum(parts.values())]:
            parts[shape] += 1
        for shape, part in parts.items():
            if part:
                yield RoutingShare(input=bucket.input, output=bucket.output, shape=shape.key, share=part / _PARTS)
