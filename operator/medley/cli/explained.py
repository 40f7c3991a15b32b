"""`medley explain`: why a plan is as it is, what binds, and what other promises would cost; each figure re-solved.

Of a service that cannot be met: what the least is that would have to give, bound by bound, and several together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medley.cli import terminal
from medley.cli.inputs import Options, overlaid
from medley.cli.manifests import Manifests, read
from medley.cli.planned import (
    ANY_TIME,
    INVALID,
    as_status,
    doubts,
    money,
    printed,
    promise,
    refuse,
    refuse_without_classes,
    say,
    status,
)
from medley.core.errors import MedleyError
from medley.core.units import figure
from medley.planning.binding import BoundState, bounds
from medley.planning.problem import LossScenario
from medley.planning.proposal import Proposal, propose
from medley.planning.relaxation import Relaxation, relaxations
from medley.planning.shadow import ShadowPrices, shadow_prices
from medley.planning.whatif import Case, WhatIf, what_ifs

_PERCENT = 100
_NOISE = 1e-6
_SHOWN_SIZES = 3  # dearest, and as many cheapest


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is said about one plan."""

    manifests: Manifests
    proposal: Proposal
    bounds: tuple[BoundState, ...]
    margins: ShadowPrices | None  # None: there is no plan
    what_ifs: tuple[WhatIf, ...]  # of a plan that is met
    relaxations: tuple[Relaxation, ...]  # of one that is not


def run(paths: Sequence[Path], out: str, options: Options) -> int:
    """Print the explanation and return the exit status."""
    aside = terminal.aside()
    try:
        written = read(paths)
        refuse_without_classes(written)
        manifests, notes = overlaid(written, options, datetime.now(UTC))
        say(notes, aside)
        case = Case(manifests.service, manifests.classes, manifests.profiles, manifests.budgets)
        with aside.status("solving") as progress:
            proposal = propose(manifests.observed, ANY_TIME)
            say(doubts(proposal), aside)
            margins = None if proposal.infeasible else shadow_prices(proposal.question.problem)
            others: list[WhatIf] = []
            eased: list[Relaxation] = []
            if proposal.infeasible is None:
                for what_if in what_ifs(case, proposal.allocation):
                    others.append(what_if)
                    progress.update(f"solving: {escape(what_if.change)}")
            else:
                for relaxation in relaxations(case):
                    eased.append(relaxation)
                    progress.update(f"solving: {escape(relaxation.change)}")
    except MedleyError as error:
        refuse(error, aside)
        return INVALID
    found = Explanation(
        manifests,
        proposal,
        bounds(proposal.question.problem, proposal.allocation),
        margins,
        tuple(others),
        tuple(eased),
    )
    printed(out, lambda: _value(found), lambda console: _show(found, console))
    return status(proposal)


def _value(found: Explanation) -> dict[str, Any]:
    """Return the explanation as JSON has it; money as numbers of USD per hour."""
    proposal = found.proposal
    infeasible = as_status(proposal).get("infeasible")
    return {
        "usdPerHour": proposal.allocation.usd_per_hour,
        "onDemandUSDPerHour": proposal.on_demand_usd_per_hour,
        "notUsed": [
            {
                "class": each.accelerator_class,
                "market": each.market,
                "zone": each.zone,
                "why": each.why,
                "message": each.message,
                "usdPerNodeHour": each.usd_per_node_hour,
            }
            for each in proposal.not_used
        ],
        "bounds": [
            {"bound": each.bound, "allowed": each.allowed, "used": each.used, "binding": each.binds}
            for each in found.bounds
        ],
        "whatIf": [
            {"change": each.change, "usdPerHour": each.usd_per_hour, "savesUSDPerHour": each.saves_usd_per_hour}
            for each in found.what_ifs
        ],
        "margins": _margins(found.margins, proposal),
        "infeasible": infeasible,
        "relaxations": [
            {
                "fields": list(each.fields),
                "change": each.change,
                "usdPerHour": each.usd_per_hour,
                "moved": each.moved,
            }
            for each in found.relaxations
        ],
    }


def _margins(margins: ShadowPrices | None, proposal: Proposal) -> dict[str, Any] | None:
    if margins is None:
        return None
    grid = proposal.question.problem.demand.grid
    return {
        "bounds": dict(margins.bounds),
        "losses": {loss.name: price for loss, price in _losses(margins)},
        "requests": [
            dict(zip(("inputTokens", "outputTokens"), grid.sizes(bucket), strict=True)) | {"usdPerHour": price}
            for bucket, price in margins.requests
        ],
        "reducedCosts": {str(key): price for key, price in margins.offerings},
    }


def _losses(margins: ShadowPrices) -> list[tuple[LossScenario, float]]:
    return [(scenario.loss, price) for scenario, price in margins.losses if scenario.loss is not None]


def _show(explanation: Explanation, console: Console) -> None:
    manifests, proposal = explanation.manifests, explanation.proposal
    service, found = manifests.service, proposal.allocation
    demand = proposal.question.problem.demand.total
    console.print(
        f"[bold]{escape(service.name)}[/]: {escape(service.model)}, {figure(demand)} requests/s, {promise(manifests)}"
    )
    if proposal.infeasible is None:
        replicas = ", ".join(f"{count} x {key}" for key, count in found.replicas) or "no replicas"
        console.print(f"[bold]{money(found.usd_per_hour)} USD/h[/]: {replicas}")
    else:
        unmet = figure(proposal.infeasible.unmet_requests_per_second)
        console.print(f"[bold red]cannot be met:[/] {unmet} requests/s stay unserved")
        for each in proposal.infeasible.bindings:
            console.print(f"  {escape(each.where)}: {escape(each.message)}")
    for table in (
        _bounds(explanation),
        _sizes(explanation),
        _not_used(explanation),
        _what_ifs(explanation.what_ifs),
        _relaxations(explanation.relaxations),
    ):
        if table.row_count:
            console.print()
            console.print(table)


def _bounds(explanation: Explanation) -> Table:
    """Return what each bound allows, what is used of it, and what one unit more would save at the margin."""
    table = Table("BOUND", "ALLOWED", "USED", "", "AT THE MARGIN", box=None)
    margins = explanation.margins
    prices = dict(margins.bounds) if margins else {}
    for each in explanation.bounds:
        binds = "[bold yellow]binds[/]" if each.binds else ""
        margin = f"{prices[each.bound]:.2f} USD/h" if each.bound in prices else ""
        table.add_row(escape(each.bound), each.allowed, each.used, binds, margin)
    survive = explanation.proposal.question.problem.spot.survive_zone_loss
    for loss, price in _losses(margins) if margins else ():
        part = survive if loss.survive is None else loss.survive
        margin = f"{price / _PERCENT:.3f} USD/h per point" if price > _NOISE else ""
        binds = "[bold yellow]binds[/]" if margin else ""
        table.add_row(f"surviving the loss of {escape(loss.name)}", f"{part:.0%} of the demand", "", binds, margin)
    return table


def _sizes(explanation: Explanation) -> Table:
    """Return the sizes of which one more request per second costs most and least, at the margin."""
    table = Table("ONE MORE REQUEST/S OF UP TO", "USD/H AT THE MARGIN", box=None)
    table.columns[1].justify = "right"
    if explanation.margins is None:
        return table
    grid = explanation.proposal.question.problem.demand.grid
    ranked = sorted(explanation.margins.requests, key=lambda each: (-each[1], each[0]))
    shown = ranked if len(ranked) <= 2 * _SHOWN_SIZES else [*ranked[:_SHOWN_SIZES], *ranked[-_SHOWN_SIZES:]]
    for bucket, price in shown:
        table.add_row("{} + {} tokens".format(*grid.sizes(bucket)), f"{price:.3f}")
    return table


def _not_used(explanation: Explanation) -> Table:
    """Return why each class, market and zone that is not used is not, with the least reduced cost of its offerings."""
    table = Table("NOT USED", "MARKET", "ZONE", "REDUCED COST", "WHY", box=None)
    margins = explanation.margins
    for each in explanation.proposal.not_used:
        costs = [
            price
            for key, price in (margins.offerings if margins else ())
            if key.shape.accelerator_class == each.accelerator_class
            and each.market in (None, key.market)
            and each.zone in (None, key.zone)
        ]
        reduced = f"{min(costs):.2f} USD/h" if costs else ""
        table.add_row(each.accelerator_class, each.market or "all", each.zone or "all", reduced, escape(each.message))
    return table


def _what_ifs(others: Sequence[WhatIf]) -> Table:
    table = Table("WHAT IF", "USD/H", "SAVES USD/H", box=None)
    table.columns[1].justify = table.columns[2].justify = "right"
    for each in others:
        if each.usd_per_hour is None:
            table.add_row(escape(each.change), "[red]cannot be met[/]", "")
            continue
        saves = each.saves_usd_per_hour or 0.0
        colour = "green" if saves > 0 else "red" if saves < 0 else "dim"
        table.add_row(
            escape(each.change), money(each.usd_per_hour), f"[{colour}]{saves:+.2f}[/]" if saves else "[dim]nothing[/]"
        )
    return table


def _relaxations(eased: Sequence[Relaxation]) -> Table:
    """Return what would have to give; the cheapest plan among them is marked."""
    table = Table("WHAT WOULD HAVE TO GIVE", "BY", "USD/H", box=None)
    table.columns[1].justify = table.columns[2].justify = "right"
    cheapest = min((each.usd_per_hour for each in eased), default=None)
    for each in eased:
        by = "" if each.moved is None else f"{each.moved:.0%}" + (" each" if len(each.fields) > 1 else "")
        usd = money(each.usd_per_hour)
        table.add_row(
            escape(each.change.replace(" and ", "\n")),
            by,
            f"[bold green]{usd}[/]" if each.usd_per_hour == cheapest else usd,
        )
    return table
