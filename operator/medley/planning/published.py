"""`spec.allocation: Melange`: what the published programme buys for a service, in the form of a plan.

Called by `proposal`. For comparison only, since it keeps none of the service's bounds: every shape at the lowest price
that it is offered at, without end; sizes known with their outputs; replicas filled to their throughput. Pure.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from medley.core.accelerators import OfferingKey, Shape
from medley.core.workload import Bucket
from medley.planning.explain import NotUsed, explain
from medley.planning.melange import SlicedAllocation, Unservable, as_published
from medley.planning.offerings import Why
from medley.planning.problem import Allocation, AllocationProblem, Binding, Bound, Infeasible, Share
from medley.planning.question import Question

SLICES = 8  # of a bucket, as in the paper


def published(problem: AllocationProblem) -> Allocation | Infeasible:
    """Return the plan; infeasible where no shape serves some size. Raises SolverError."""
    match as_published(problem, slices=SLICES):
        case Unservable(buckets):
            rates = dict(problem.demand.requests_per_second)
            unmet = tuple((bucket, rates[bucket]) for bucket in buckets)
            message = (
                f"no class serves {len(unmet)} of the sizes, {math.fsum(rate for _, rate in unmet):.3g} requests/s, "
                "within the SLO; allow a class whose profile does, relax the SLO, or lower spec.model.maxModelLen"
            )
            return Infeasible(unmet, (Binding(Bound.SIZES, message),), Allocation((), (), 0.0, 0.0))
        case SlicedAllocation() as found:
            bought = _cheapest(problem)
            return Allocation(
                replicas=tuple(sorted((bought[shape], count) for shape, count in found.replicas if count)),
                shares=_shares(found),
                usd_per_hour=found.usd_per_hour,
                gap=found.gap,
            )


def not_used(question: Question, answer: Allocation | Infeasible) -> tuple[NotUsed, ...]:
    """Return one reason per class that is not used: what rules it out, or that the optimum does without."""
    if isinstance(answer, Infeasible):
        return explain(question, answer)
    used = {key.shape.accelerator_class for key, _ in answer.replicas}
    able = {row.shape.accelerator_class for row in question.problem.throughput if row.requests_per_second}
    message = "the published programme's optimum does without"
    return tuple(
        NotUsed(each.name, None, None, Why.DEARER, message)
        if each.name in able
        else next(reason for reason in explain(question, answer) if reason.accelerator_class == each.name)
        for each in question.classes
        if each.name not in used
    )


def _cheapest(problem: AllocationProblem) -> dict[Shape, OfferingKey]:
    """Return the offering of every shape that `as_published` prices it by; of equals the first by name."""
    found: dict[Shape, OfferingKey] = {}
    for offering in sorted(problem.offerings, key=lambda offering: (offering.usd_per_hour, offering.key)):
        found.setdefault(offering.key.shape, offering.key)
    return found


def _shares(found: SlicedAllocation) -> tuple[Share, ...]:
    whole: Counter[Bucket] = Counter()
    slices: defaultdict[tuple[Bucket, Shape], int] = defaultdict(int)
    for bucket, shape, count in found.slices:
        whole[bucket] += count
        slices[bucket, shape] += count
    return tuple(Share(bucket, shape, count / whole[bucket]) for (bucket, shape), count in sorted(slices.items()))
