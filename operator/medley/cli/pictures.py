"""`medley plan --picture`: a plan in three drawings, made for slides and reports.

    cost over rate       the mix, by class and market, beside every class alone
    who serves what      requests/s by size of input and by shape
    cost over promise    USD/h against the bound on TPOT (on TTFT, where TPOT is not promised)

Every point is a plan, solved by the operator's code; where there is none, nothing is drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from medley.cli.manifests import Manifests
from medley.core.accelerators import Market
from medley.core.errors import InvalidInputError
from medley.core.service import SpotUse
from medley.core.units import figure
from medley.planning.commons import priced
from medley.planning.problem import Allocation
from medley.planning.proposal import Proposal
from medley.planning.whatif import Case, LatencyName, latency_of, plan_of, with_latency, with_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the demand
_BOUNDS = (0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0)  # of the promise
_WIDTH, _HEIGHT, _DPI = 15.0, 4.8, 150
# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_HATCH = {Market.SPOT: "", Market.ON_DEMAND: "////", Market.RESERVED: "...."}
_MARKET_ALPHA = {Market.SPOT: 0.95, Market.ON_DEMAND: 0.6, Market.RESERVED: 0.6}
_FORMATS = (".png", ".pdf", ".svg")
_THOUSAND = 1000
_HOUR_S = 3600
_HEADROOM, _LEGEND_ROOM = 2.2, 1.5  # above the bars: for lines that may be many times as high, and for the legend


@dataclass(frozen=True, slots=True)
class _Style:
    colour_of: Mapping[str, str]  # by class


def draw(manifests: Manifests, proposal: Proposal, path: Path) -> None:
    """Draw a plan into a file. Raises InvalidInputError if it cannot be."""
    if path.suffix not in _FORMATS:
        raise InvalidInputError("--picture", f"expected a name that ends in {', '.join(_FORMATS)}, got {path}")
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra that only pictures need
    except ImportError as error:
        raise InvalidInputError("--picture", "needs matplotlib: pip install '.[tool]'") from error
    case = Case(manifests.service, manifests.classes, manifests.profiles, manifests.budgets)
    style = _Style(
        {each.name: _COLOURS[number % len(_COLOURS)] for number, each in enumerate(proposal.question.classes)}
    )
    drawing = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    left, middle, right = drawing.subplots(1, 3)
    _cost_over_rate(left, case, style)
    _who_serves_what(middle, proposal, style)
    _cost_over_promise(right, case, proposal)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
    service = case.service
    rate = proposal.question.problem.demand.total
    drawing.suptitle(
        f"{service.name}: {service.model}, {figure(rate)} requests/s, {proposal.allocation.usd_per_hour:.2f} USD/h",
        fontsize=13,
    )
    try:
        drawing.savefig(path, dpi=_DPI)
    except OSError as error:
        raise InvalidInputError("--picture", f"{path} cannot be written: {error.strerror}") from error


def _cost_over_rate(axes: Axes, case: Case, style: _Style) -> None:
    """Draw the price of 1,000 requests, which is comparable over rates, and write the USD per hour on top."""
    rates = [factor * case.service.forecast.requests_per_second for factor in _RATES]
    cases = [_unbounded(case, rate) for rate in rates]
    plans = [plan_of(each) for each in cases]
    parts = [{} if plan is None else _by_class(each, plan) for each, plan in zip(cases, plans, strict=True)]
    tops = [0.0] * len(rates)
    for name, market in sorted({key for part in parts for key in part}):
        heights = [_per_thousand(part.get((name, market), 0.0), rate) for part, rate in zip(parts, rates, strict=True)]
        axes.bar(
            range(len(rates)),
            heights,
            bottom=tops,
            width=0.6,
            label=f"{name} {market}",
            color=style.colour_of[name],
            alpha=_MARKET_ALPHA[market],
            hatch=_HATCH[market],
            edgecolor="white",
            linewidth=0.8,
        )
        tops = [top + height for top, height in zip(tops, heights, strict=True)]
    unable: list[str] = []
    for name, colour in style.colour_of.items() if len(style.colour_of) > 1 else ():
        alone = [plan_of(_alone(each, name)) for each in cases]
        points = [
            (place, _per_thousand(plan.usd_per_hour, rate))
            for place, (plan, rate) in enumerate(zip(alone, rates, strict=True))
            if plan is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, label=f"{name} alone", color=colour, marker="o", markersize=4, linewidth=1.2)
        else:
            unable.append(name)
    if any(tops):
        axes.set_ylim(top=(_LEGEND_ROOM if len(unable) == len(style.colour_of) else _HEADROOM) * max(tops))
    axes.set_xticks(
        range(len(rates)),
        [
            f"{figure(rate)}\n" + ("no plan" if plan is None else f"{plan.usd_per_hour:,.2f} USD/h")
            for rate, plan in zip(rates, plans, strict=True)
        ],
        fontsize=8,
    )
    axes.set(
        xlabel="demand (requests/s), and what the mix costs",
        ylabel="USD per 1,000 requests",
        title="The mix (bars), and one class alone (lines)",
    )
    axes.legend(
        framealpha=0.9,
        edgecolor="none",
        fontsize=8,
        ncols=2,
        loc="upper right",
        title=f"not able alone: {', '.join(unable)}" if unable else None,
        title_fontsize=8,
    )


def _per_thousand(usd_per_hour: float, requests_per_second: float) -> float:
    return usd_per_hour / (requests_per_second * _HOUR_S) * _THOUSAND


def _who_serves_what(axes: Axes, proposal: Proposal, style: _Style) -> None:
    demand = proposal.question.problem.demand
    rates = dict(demand.requests_per_second)
    served: defaultdict[tuple[str, str], defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
    for share in proposal.allocation.shares:
        key = share.shape.accelerator_class, share.shape.key
        served[key][share.bucket.input] += share.share * rates.get(share.bucket, 0.0)
    ranges = sorted({bucket.input for bucket in rates})
    bottoms = dict.fromkeys(ranges, 0.0)
    for (name, shape), by_range in sorted(served.items()):
        heights = [by_range[each] for each in ranges]
        axes.bar(
            range(len(ranges)), heights, bottom=[bottoms[each] for each in ranges], width=0.7, label=shape,
            color=style.colour_of[name], edgecolor="white", linewidth=0.8,
        )  # fmt: skip
        for each, height in zip(ranges, heights, strict=True):
            bottoms[each] += height
    edges = demand.grid.input_edges
    axes.set_xticks(range(len(ranges)), [f"≤ {_tokens(edges[each])}" for each in ranges], rotation=30, ha="right")
    axes.set(xlabel="size of the prompt (tokens)", ylabel="requests/s", title="Which shape serves which prompts")
    if served:
        axes.legend(frameon=False, fontsize=8)


def _tokens(count: int) -> str:
    return f"{count / _THOUSAND:g}k" if count >= _THOUSAND else str(count)


def _cost_over_promise(axes: Axes, case: Case, proposal: Proposal) -> None:
    name: LatencyName = "tpot" if case.service.slo.tpot is not None else "ttft"
    promised = latency_of(case.service, name)
    assert promised is not None, "an SLO promises at least one of the two"
    bounds = [promised * factor for factor in _BOUNDS]
    never = replace(case.service.spot, use=SpotUse.NEVER)
    curves: tuple[tuple[str, str, Callable[[Case], Case]], ...] = (
        ("with spot", _COLOURS[0], lambda each: each),
        ("on-demand only", _COLOURS[5], lambda each: each._replace(service=replace(each.service, spot=never))),
    )
    if case.service.spot.use is SpotUse.NEVER:
        curves = curves[1:]
    for label, colour, changed in curves:
        plans = [
            plan_of(changed(_unbounded(case._replace(service=with_latency(case.service, name, bound)))))
            for bound in bounds
        ]
        points = [
            (_ms(bound), plan.usd_per_hour) for bound, plan in zip(bounds, plans, strict=True) if plan is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=label)
    axes.axvline(_ms(promised), color="#555555", linewidth=1, linestyle=":")
    axes.annotate(
        f"promised: {_ms(promised):g} ms", (_ms(promised), 0.98), xycoords=("data", "axes fraction"), rotation=90,
        ha="right", va="top", fontsize=8, color="#555555",
    )  # fmt: skip
    if proposal.infeasible is None:
        usd = proposal.allocation.usd_per_hour
        axes.plot(_ms(promised), usd, marker="*", markersize=14, color="black", linestyle="", label="this plan")
    axes.set(
        xlabel=f"bound on {name.upper()} (ms, {case.service.slo.percentile:g}th percentile)",
        ylabel="cost (USD/h)",
        title=f"What the promise costs ({figure(case.service.forecast.requests_per_second)} requests/s)",
    )
    axes.legend(frameon=False, fontsize=8)


def _unbounded(case: Case, rate: float | None = None) -> Case:
    """Return the case without budgets and with enough replicas, so that a curve goes on beyond them; caps stay."""
    limits = replace(case.service.limits, max_usd_per_hour=None, budget=None, max_replicas=100_000)
    service = replace(case.service, limits=limits)
    return case._replace(service=service if rate is None else with_rate(service, rate))


def _alone(case: Case, name: str) -> Case:
    return case._replace(service=replace(case.service, classes=(name,)))


def _by_class(case: Case, plan: Allocation) -> dict[tuple[str, Market], float]:
    prices = dict(priced((key for key, _ in plan.replicas), case.classes)[0])
    found: defaultdict[tuple[str, Market], float] = defaultdict(float)
    for key, count in plan.replicas:
        found[key.shape.accelerator_class, key.market] += count * prices[key]
    return dict(found)


def _ms(bound: timedelta) -> float:
    return bound / timedelta(milliseconds=1)
