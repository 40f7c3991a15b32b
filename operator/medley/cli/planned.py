"""`medley plan`: what services would run on, what it costs and why, by the code that the operator runs.

Reads manifests, asks `planning.proposal` as a pass over a service without any replicas would, and prints the answer as
a table for people or as the `status.plan` that the operator would write. Several services share nodes and Budgets as
they would in a cluster.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from medley.cli import terminal
from medley.cli.inputs import Note, Options, overlaid
from medley.cli.manifests import Manifests, read_all
from medley.core.accelerators import Shape
from medley.core.errors import InvalidInputError, MedleyError
from medley.core.units import figure
from medley.kube.plan_status import money, plan_status, saved_percent
from medley.planning.capacity import utilisation
from medley.planning.problem import Bound
from medley.planning.proposal import Proposal, propose

MET, UNMET, INVALID = 0, 1, 2
_ROUNDED_AWAY = 1e-9  # of a size that is not served at all, so that its rate stays above 0
# A plan from nothing remembers nothing, so the time does not matter; it is an argument of the planning code.
ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def run(paths: Sequence[Path], out: str, options: Options, picture: Path | None = None) -> int:
    """Print the plan and return the exit status; `picture`: where to draw it."""
    aside = terminal.aside()
    try:
        written = read_all(paths)
        refuse_without_classes(written[0])
        _refuse_for_several(written, options, picture)
        now = datetime.now(UTC)
        overlays = [overlaid(each, options, now) for each in written]
        # What is said of the catalogue is said of it for each service.
        say(dict.fromkeys(note for _, notes in overlays for note in notes), aside)
        plans = [(each, propose(each.observed, ANY_TIME)) for each, _ in overlays]
        say(dict.fromkeys(doubt for _, proposal in plans for doubt in doubts(proposal)), aside)
        if picture is not None:
            from medley.cli import pictures  # noqa: PLC0415  # matplotlib, which only a picture needs

            with aside.status("drawing"):
                pictures.draw(*plans[0], picture)
    except MedleyError as error:
        refuse(error, aside)
        return INVALID
    printed(out, lambda: _value(plans), lambda console: _show_all(plans, console))
    return max(status(proposal) for _, proposal in plans)


Plans = Sequence[tuple[Manifests, Proposal]]


def _refuse_for_several(written: Sequence[Manifests], options: Options, picture: Path | None) -> None:
    for given, field in ((options.trace, "--trace"), (picture, "--picture")):
        if given is not None and len(written) > 1:
            names = ", ".join(each.service.name for each in written)
            raise InvalidInputError(field, f"is of one service, and the files have {names}; give one of them")


def refuse_without_classes(written: Manifests) -> None:
    """Raise InvalidInputError where the files say nothing of what can be bought."""
    if not written.classes:
        raise InvalidInputError(
            "-c",
            "no AcceleratorClass in the files, so nothing can be bought: give a file of classes (-c FILE), such as "
            "examples/acceleratorclasses.yaml, and one of their profiles",
        )


def _value(plans: Plans) -> Any:
    """Return the plan of one service as its `status.plan`; of several a list, each with its service's name."""
    if len(plans) == 1:
        return as_status(plans[0][1])
    return [{"service": _name(manifests), "plan": as_status(proposal)} for manifests, proposal in plans]


def _show_all(plans: Plans, console: Console) -> None:
    for number, (manifests, proposal) in enumerate(plans):
        if number:
            console.print()
        show(manifests, proposal, console)
    for budget in plans[0][0].budgets:
        paid = {
            _name(manifests): proposal.allocation.usd_per_hour
            for manifests, proposal in plans
            if manifests.service.limits.budget == budget.name
        }
        if len(plans) > 1 and paid:
            parts = ", ".join(f"{name} {money(usd)}" for name, usd in paid.items())
            total = f"{money(math.fsum(paid.values()))} of {budget.usd_per_hour} USD/h"
            console.print(f"\n[bold]Budget {escape(budget.name)}[/]: {total}: {escape(parts)}")


def _name(manifests: Manifests) -> str:
    return f"{manifests.service.namespace}/{manifests.service.name}"


def status(proposal: Proposal) -> int:
    """Return the exit status: met, not within the bounds, or nothing to plan with until an object is written."""
    if proposal.infeasible is None:
        return MET
    missing = all(each.bound in {Bound.PROFILES, Bound.CLASSES} for each in proposal.infeasible.bindings)
    return INVALID if missing else UNMET


def printed(out: str, value: Callable[[], Any], table: Callable[[Console], None]) -> None:
    """Print an answer as `out` says: json, yaml or a table for people."""
    match out:
        case "json":
            print(json.dumps(value(), indent=2))  # noqa: T201  # the output of the command
        case "yaml":
            # By way of JSON, so that both say the same of every type.
            print(yaml.safe_dump(json.loads(json.dumps(value())), sort_keys=False), end="")  # noqa: T201
        case _:
            terminal.show(table)


def say(notes: Iterable[Note], console: Console) -> None:
    """Print what there is to know about the input, beside the answer."""
    for note in notes:
        mark, style = ("warning:", "bold yellow") if note.warning else ("note:", "dim")
        said = Text(terminal.wrapped(f"{mark} {note.text}", console))
        said.stylize(style, 0, len(mark))
        console.print(said, soft_wrap=True, highlight=False)


def doubts(proposal: Proposal) -> tuple[Note, ...]:
    """Return a warning per shape of the plan that may break the promise, cannot be run, or was judged unmeasured."""
    demanded = {bucket for bucket, _ in proposal.question.problem.demand.requests_per_second}
    used = {key.shape for key, _ in proposal.allocation.replicas}
    notes = [Note(f"in doubt: {doubt}", warning=True) for doubt in proposal.doubts]
    notes += [Note(f"{each}; spec.mode Auto makes another plan", warning=True) for each in proposal.spanning]
    for each in proposal.question.sustained:
        beyond = [doubt for bucket, doubt in each.extrapolated if bucket in demanded]
        if beyond and each.throughput.shape in used:
            more = f" (and {len(beyond) - 1} more sizes)" if len(beyond) > 1 else ""
            notes.append(Note(f"profile of {each.throughput.shape}: {beyond[0]}{more}", warning=True))
    return tuple(notes)


def refuse(error: MedleyError, console: Console) -> None:
    """Print what must be corrected."""
    console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)


def as_status(proposal: Proposal) -> dict[str, Any]:
    """Return the plan as `LLMService.status.plan`; without `computedAt`, since no plan is in force here."""
    return plan_status(proposal, {}).model_dump(mode="json", by_alias=True, exclude_none=True)


def show(manifests: Manifests, proposal: Proposal, console: Console) -> None:
    """Print the plan for people."""
    service, problem, found = manifests.service, proposal.question.problem, proposal.allocation
    asked = f"{escape(service.model)}, {figure(problem.demand.total)} requests/s, {promise(manifests)}"
    console.print(f"[bold]{escape(service.name)}[/]: {asked}")
    if proposal.infeasible is not None:
        unmet = figure(proposal.infeasible.unmet_requests_per_second)
        console.print(f"[bold red]cannot be met:[/] {unmet} requests/s stay unserved")
        for binding in proposal.infeasible.bindings:
            console.print(f"  {escape(binding.where)}: {escape(binding.message)}")
        if not found.replicas:
            console.print("no replica is planned")
            if proposal.not_used:
                console.print(not_used(proposal))
            return
        console.print("the best within these bounds:")
    console.print(_offerings(proposal))
    saved = saved_percent(proposal)
    against = proposal.on_demand_usd_per_hour
    console.print(
        f"[bold]{money(found.usd_per_hour)} USD/h[/], "
        + (
            "not to be had on on-demand capacity alone"
            if against is None
            else f"on-demand alone {money(against)} USD/h"
        )
        + ("" if saved is None else f": saves [bold green]{saved} %[/]")
        + (f" (within {found.gap:.2%} of the cheapest)" if found.gap else "")
    )
    if proposal.not_used:
        console.print(not_used(proposal))


def promise(manifests: Manifests) -> str:
    """Return the SLO in words."""
    slo = manifests.service.slo
    bounds = (("TTFT", slo.ttft), ("TPOT", slo.tpot))
    said = " and ".join(
        f"{name} ≤ {figure(bound.total_seconds() * 1000)} ms" for name, bound in bounds if bound is not None
    )
    return f"{said} for {slo.percentile:g} % of requests"


def _offerings(proposal: Proposal) -> Table:
    table = Table("REPLICAS", "SHAPE", "MARKET", "ZONE", "USD/H EACH", "USD/H", "BUSY", "SERVES", box=None)
    prices, problem = proposal.usd_per_replica_hour, proposal.question.problem
    unmet = dict(proposal.infeasible.unmet) if proposal.infeasible is not None else {}
    demanded = {
        bucket: max(rate - unmet.get(bucket, 0.0), rate * _ROUNDED_AWAY)
        for bucket, rate in problem.demand.requests_per_second
    }
    served_demand = replace(problem.demand, requests_per_second=tuple(demanded.items()))
    busy = utilisation(replace(problem, demand=served_demand), proposal.allocation)
    of_shape: Counter[Shape] = Counter()
    for key, count in proposal.allocation.replicas:
        of_shape[key.shape] += count
    for key, count in proposal.allocation.replicas:
        to_shape = sum(
            demanded[each.bucket] * each.share for each in proposal.allocation.shares if each.shape == key.shape
        )
        served = to_shape * count / of_shape[key.shape]
        table.add_row(
            str(count),
            key.shape.key,
            str(key.market),
            key.zone,
            money(prices[key]),
            money(prices[key] * count),
            f"{busy[key.shape]:.0%}",
            f"{served / problem.demand.total:.0%} of requests" if demanded else "",
        )
    return table


def not_used(proposal: Proposal) -> Table:
    """Return why each class, market and zone that is not used is not."""
    table = Table("NOT USED", "MARKET", "ZONE", "WHY", box=None)
    zones: dict[tuple[str, str, str], list[str]] = {}
    for each in proposal.not_used:
        place = (each.accelerator_class, each.market or "all", each.message)
        zones.setdefault(place, []).append(each.zone or "all")
    for (name, market, message), places in zones.items():
        table.add_row(name, market, ", ".join(places), escape(message))
    return table
