"""From a service, its classes and profiles to the question that the allocator answers.

    question = ask(service, classes, profiles, fleet=..., withheld=...)
    match allocate(question.problem): ...
    not_used = explain(question, allocation)

Called by `reconcile.plan` and `medley plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from medley.core.accelerators import AcceleratorClass, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.profiles import Profile
from medley.core.service import AllocationMode, Budget, Histogram, OperatingMode, RoutingKnowledge, Service
from medley.core.workload import MELANGE_GRID, Bucket, Demand, SizeGrid, Slo
from medley.planning.burstiness import life_s
from medley.planning.changes import in_the_objective
from medley.planning.commons import budget_named, spending
from medley.planning.ignorance import Class, arrivals, blind
from medley.planning.mixture import Sizes, streams
from medley.planning.offerings import OutOfQuestion, Why, chosen_classes, on_offer, on_several_nodes
from medley.planning.predicted import believed
from medley.planning.presets import preset
from medley.planning.problem import DEFAULT_UTILISATION, AllocationProblem
from medley.planning.settled import Judged, Promise, Settled, settled
from medley.planning.terms import Quota
from medley.planning.throughput import Sustained, most_trusted, sustained
from medley.planning.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Question:
    """What the allocator is asked, and what was ruled out before it was asked."""

    problem: AllocationProblem
    slo: Slo
    classes: tuple[AcceleratorClass, ...]  # that the service may use
    profiles: tuple[Profile, ...]  # one per shape, those that were used
    sustained: tuple[Sustained, ...]  # of the same shapes
    out_of_question: tuple[OutOfQuestion, ...]
    routing: RoutingKnowledge = RoutingKnowledge.BLIND  # Blind: buckets are input x max_tokens
    dispersion: float = 1.0  # of arrivals; 1: Poisson
    doubtful: tuple[Judged, ...] = ()  # shapes at which the promise was not shown to hold when this was settled

    @property
    def spanning(self) -> tuple[tuple[Shape, str], ...]:
        """Shapes that span several nodes, and what to know of them in words; with `mode: Plan` they are on offer."""
        sizes = {each.name: each for each in self.classes}
        shapes = sorted({offering.key.shape for offering in self.problem.offerings})
        return tuple(
            (shape, on_several_nodes(shape, nodes))
            for shape in shapes
            if (nodes := sizes[shape.accelerator_class].nodes_of(shape)) is not None and nodes > 1
        )

    @property
    def unprofiled(self) -> tuple[str, ...]:
        """Classes without a profile of the model."""
        return tuple(out.accelerator_class for out in self.out_of_question if out.why is Why.NO_PROFILE)


def ask(
    service: Service,
    classes: Iterable[AcceleratorClass],
    profiles: Iterable[Profile],
    budgets: Iterable[Budget] = (),
    *,
    demand: Demand | None = None,
    traffic: Traffic | None = None,
    fleet: tuple[tuple[OfferingKey, int], ...] = (),
    withheld: Iterable[tuple[OfferingKey, int, str]] = (),
    utilisation: float = DEFAULT_UTILISATION,
) -> Question:
    """Return the question for a service.

    `demand`: what is to be served; None: the forecast. `traffic`: what was measured, which takes the place of both.
    `fleet`: replicas that exist. `withheld`: offerings of which no more than so many replicas are to be had for now,
    and why. `budgets`: those that there are; the whole of the service's own bounds it. Raises InvalidInputError,
    UnknownClassError, UnknownBudgetError.
    """
    drawn = () if service.limits.budget is None else (budget_named(budgets, service.limits.budget),)
    chosen = chosen_classes(classes, service.classes)
    of_model = _of_model(service, chosen, profiles)
    longest = _longest(service, of_model)
    served = traffic.demand if traffic is not None else demand if demand is not None else forecast(service, longest)
    fitting, out = _fitting(service, chosen, of_model)
    judged = tuple(_sustained(profile, service.slo, served.grid, longest) for profile in fitting)
    able = tuple(each.throughput for each in judged if each.throughput.requests_per_second)
    offer = on_offer(
        chosen, (each.shape for each in able), zones=service.zones, spot=service.spot.use, withheld=withheld
    )
    problem = AllocationProblem(
        demand=served,
        offerings=offer.offerings,
        throughput=able,
        limits=service.limits,
        spot=service.spot,
        caps=(*offer.caps, *(spending(each, ((o.key, o.usd_per_hour) for o in offer.offerings)) for each in drawn)),
        utilisation=utilisation,
        quotas=tuple(
            Quota(each.gpus, each.accelerator_class, each.market, each.zone, shared=False)
            for each in service.limits.gpu_quotas
        ),
        spread=service.spread,
    )
    doubtful: tuple[Judged, ...] = ()
    if service.allocation is AllocationMode.MELANGE:
        # The paper's routers know outputs, and its replicas are full; the fleet means nothing to it.
        problem, routing = replace(problem, utilisation=1.0), RoutingKnowledge.ORACLE
        dispersion = 1.0
    else:
        routing = service.routing
        problem, dispersion, doubtful = _as_it_comes(service, problem, fitting, longest, traffic)
        if fleet:
            problem = replace(problem, fleet=fleet, change_usd=in_the_objective(offer.offerings))
    return Question(
        problem,
        service.slo,
        classes=chosen,
        profiles=fitting,
        sustained=judged,
        out_of_question=(*out, *offer.out_of_question),
        routing=routing,
        dispersion=dispersion,
        doubtful=doubtful,
    )


def expected(service: Service, classes: Iterable[AcceleratorClass], profiles: Iterable[Profile]) -> tuple[Demand, int]:
    """Return the forecast, and the tokens of the longest request that is let in.

    Raises InvalidInputError, UnknownClassError.
    """
    longest = _longest(service, _of_model(service, chosen_classes(classes, service.classes), profiles))
    return forecast(service, longest), longest


def grid_of(service: Service) -> SizeGrid:
    """Return the ranges of sizes that a service's plan speaks of."""
    written = service.forecast.distribution
    return (preset(written) if isinstance(written, str) else written).grid


def _of_model(service: Service, chosen: Iterable[AcceleratorClass], profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    names = {each.name for each in chosen}
    return most_trusted(
        profile for profile in profiles if profile.model == service.model and profile.shape.accelerator_class in names
    )


def _as_it_comes(
    service: Service,
    problem: AllocationProblem,
    profiles: tuple[Profile, ...],
    longest: int,
    traffic: Traffic | None,
) -> tuple[AllocationProblem, float, tuple[Judged, ...]]:
    """Return the problem by what routers see, with replicas as full as arrivals allow; how bursty these are; doubts."""
    blindly = service.routing is RoutingKnowledge.BLIND
    seen = () if not blindly else arrivals(problem.demand) if traffic is None else traffic.arrivals
    models = tuple((each.shape, believed(each.latency)) for each in profiles if each.latency is not None)
    dispersion = 1.0 if traffic is None else _dispersion(service, problem.demand, models, longest, traffic)
    if models and problem.demand.requests_per_second:
        promise = Promise(service.slo, longest, dispersion, Sizes.EVEN)
        found = _settled(problem, models, promise, seen)
        return found.problem, dispersion, found.doubtful
    if blindly:
        return blind(problem, seen, 1 - service.slo.percentile / 100), dispersion, ()
    return problem, dispersion, ()


def _dispersion(
    service: Service,
    demand: Demand,
    models: Iterable[tuple[Shape, LatencyModel]],
    longest: int,
    traffic: Traffic,
) -> float:
    """Return how bursty arrivals are while a request lives, at the shape where it lives longest."""
    mix = [each for parts in streams(demand, longest=longest, sizes=Sizes.EVEN).values() for each in parts]
    if not mix:
        return 1.0
    lives = (life_s(model, service.slo, mix) for _, model in models)
    return traffic.dispersion(max((life for life in lives if life is not None), default=0.0))


# It is the same whatever rate is asked for, and takes longer than most answers.
@lru_cache(maxsize=256)
def _sustained(profile: Profile, slo: Slo, grid: SizeGrid, longest: int) -> Sustained:
    return sustained(profile, slo, grid, longest=longest)


# How full replicas may be does not depend on the fleet that exists, so a pass over a service that did not change, and
# every what-if that leaves traffic and prices alone, finds it here.
@lru_cache(maxsize=256)
def _settled(
    problem: AllocationProblem,
    models: tuple[tuple[Shape, LatencyModel], ...],
    promise: Promise,
    seen: tuple[Class, ...],
) -> Settled:
    """Return the problem with rows per resource, and utilisations at which its own answer keeps the promise."""
    return settled(problem, dict(models), promise, classes=seen)


def forecast(service: Service, longest: int) -> Demand:
    """Return the forecast as a demand over the sizes that requests of up to `longest` tokens have.

    A size counts if the middle of its range fits: of a range of which only the edge fits, most requests would be
    refused for their length. The rate is that of the requests that are let in, spread over the sizes that are left.
    """
    written = service.forecast.distribution
    histogram = preset(written) if isinstance(written, str) else written
    rate = service.forecast.requests_per_second
    if not math.isfinite(rate) or rate < 0:
        raise InvalidInputError("spec.workload.requestsPerSecond", f"expected a rate of 0 or more, got {rate}")
    if rate == 0:
        return Demand(histogram.grid, ())
    grid = histogram.grid
    kept = tuple(
        tuple(weight if sum(grid.middle(Bucket(i, o))) <= longest else 0.0 for o, weight in enumerate(row))
        for i, row in enumerate(histogram.weights)
    )
    if not any(weight for row in kept for weight in row):
        raise InvalidInputError(
            "spec.model.maxModelLen",
            f"no request of the forecast fits {longest} tokens; raise it or change the forecast",
        )
    return Histogram(grid, kept).demand(rate)


def _longest(service: Service, profiles: Iterable[Profile]) -> int:
    """Return the length of the longest request that is let in, in tokens.

    Where the service does not say, engines take the model's own limit: at least what any replica was seen to hold.
    """
    if service.max_model_len is not None:
        return service.max_model_len
    return max((profile.max_model_len for profile in profiles), default=MELANGE_GRID.input_edges[-1])


def _fitting(
    service: Service, classes: Iterable[AcceleratorClass], profiles: tuple[Profile, ...]
) -> tuple[tuple[Profile, ...], tuple[OutOfQuestion, ...]]:
    """Return the profiles whose shapes can be had and can hold the model, and why the others are out."""
    fitting: list[Profile] = []
    out: list[OutOfQuestion] = []
    for each in sorted(classes, key=lambda each: each.name):
        own = [profile for profile in profiles if profile.shape.accelerator_class == each.name]
        if not own:
            out.append(
                OutOfQuestion(
                    each.name, Why.NO_PROFILE, f"no PerformanceProfile of {service.model}; measure or add one"
                )
            )
        if not each.offers:
            out.append(OutOfQuestion(each.name, Why.NOT_OFFERED, "spec.zones of the AcceleratorClass names no price"))
        for profile in own:
            shape = profile.shape
            nodes = each.nodes_of(shape)
            if nodes is None:
                message = f"{shape} needs {shape.tensor_parallel} GPUs on one node, which has {each.gpus_per_node}"
                out.append(OutOfQuestion(each.name, Why.NODE_TOO_SMALL, message, shape))
            elif nodes > 1 and service.mode is not OperatingMode.PLAN:
                message = (
                    f"{on_several_nodes(shape, nodes)}: use spec.mode Plan to see what it would cost, "
                    "or a class with more GPUs per node"
                )
                out.append(OutOfQuestion(each.name, Why.SEVERAL_NODES, message, shape))
            elif service.max_model_len is not None and profile.max_model_len < service.max_model_len:
                message = (
                    f"{shape} holds {profile.max_model_len} tokens, less than spec.model.maxModelLen "
                    f"{service.max_model_len}; lower it, or use a larger shape"
                )
                out.append(OutOfQuestion(each.name, Why.TOO_LONG, message, shape))
            else:
                fitting.append(profile)
    return tuple(fitting), tuple(out)
