"""`medley plan --diff`: what a manifest would change in a cluster and what it would cost, replica by replica.

Reads the service, its engine pods, the other services and theirs, and, where the files have none, the cluster's
AcceleratorClasses, PerformanceProfiles and Budgets; writes nothing. The plan is the one that the operator would make of
this manifest over the replicas that are there. What only it sees (nodes that go away, engines that stall) is not looked
at.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medley.api import convert
from medley.api.llmservice_status import PlanStatus
from medley.cli import terminal
from medley.cli.inputs import Note, Options, overlaid
from medley.cli.manifests import Manifests, read
from medley.cli.planned import INVALID, MET, UNMET, money, printed, refuse, say
from medley.core import names
from medley.core.accelerators import OfferingKey
from medley.core.errors import ClusterError, InvalidInputError, MedleyError, ObjectGoneError
from medley.core.service import Service
from medley.core.units import figure
from medley.kube.api import ACCELERATOR_CLASS, LLM_SERVICE, MONEY_BUDGET, PERFORMANCE_PROFILE, POD, Api, Kind, connected
from medley.kube.neighbours import neighbours
from medley.kube.replicas import replica
from medley.kube.status import shape_of, standing
from medley.planning.fleet import Neighbour, Observed, Replica, Standing
from medley.planning.problem import MICRODOLLARS
from medley.planning.proposal import Proposal, propose
from medley.planning.rollout import counted, pod_name
from medley.planning.traffic import Traffic

Json = Mapping[str, Any]
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the cluster has of a service."""

    there: bool  # the LLMService
    observed: Observed
    plan: PlanStatus | None  # in force
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One replica: it stays, is launched (`+`) or goes (`-`). Prices are USD per hour; None: there is none."""

    mark: str
    name: str
    offering: OfferingKey
    before: float | None
    after: float | None


def run(paths: Sequence[Path], out: str, options: Options, kubeconfig: Path | None, namespace: str) -> int:
    """Print what would change and return the exit status of the plan that would be in force.

    `kubeconfig`: None: $KUBECONFIG or ~/.kube/config. `namespace`: of a manifest that names none.
    """
    aside = terminal.aside()
    try:
        written = read(paths)
        written = replace(written, service=replace(written.service, namespace=written.service.namespace or namespace))
        seen = asyncio.run(_seen(written.service, kubeconfig))
        manifests = Manifests(
            written.service,
            written.classes or seen.observed.classes,
            written.profiles or seen.observed.profiles,
            written.budgets or seen.observed.budgets,
        )
        now = datetime.now(UTC)
        manifests, notes = overlaid(manifests, options, now)
        say((*seen.notes, *notes), aside)
        observed = replace(
            seen.observed,
            service=manifests.service,
            classes=manifests.classes,
            profiles=manifests.profiles,
            budgets=manifests.budgets,
        )
        proposal = propose(observed, now)
        say(_measured(proposal), aside)
    except MedleyError as error:
        refuse(error, aside)
        return INVALID
    found = lines(observed, proposal, seen.plan, now)
    printed(out, lambda: _value(found, proposal), lambda console: _show(manifests, seen, found, proposal, console))
    return MET if proposal.infeasible is None else UNMET


def _measured(proposal: Proposal) -> tuple[Note, ...]:
    if not isinstance(proposal.traffic, Traffic):
        return ()
    rate = figure(proposal.traffic.requests_per_second)
    text = f"planned for {rate} requests/s by what routers measured, as in status.workload; a --trace takes its place"
    return (Note(text),)


async def _seen(service: Service, kubeconfig: Path | None) -> Seen:
    async with connected(kubeconfig) as api:
        return await look(api, service)


async def look(api: Api, service: Service) -> Seen:
    """Read what the cluster has of a service; raises ClusterError."""
    live = await api.get(LLM_SERVICE, service.name, service.namespace)
    classes, _ = await api.list(ACCELERATOR_CLASS)
    profiles, _ = await api.list(PERFORMANCE_PROFILE)
    labels = f"{names.LABEL_SERVICE}={service.name},{names.LABEL_COMPONENT}={names.Component.ENGINE}"
    pods, _ = await api.list(POD, service.namespace, labels=labels)
    notes: list[Note] = []
    budgets = await _listed(api, MONEY_BUDGET)
    item = None if live is None else convert.read_llm_service(live)
    return Seen(
        there=item is not None,
        observed=Observed(
            service=service,
            classes=_understood(
                classes, lambda each: convert.accelerator_class(convert.read_accelerator_class(each)), notes
            ),
            profiles=_understood(profiles, lambda each: convert.profile(convert.read_performance_profile(each)), notes),
            replicas=tuple(
                sorted((replica(pod, None, template=None, node_is_coming=False) for pod in pods), key=lambda r: r.name)
            ),
            budgets=_understood(budgets, lambda each: convert.budget(convert.read_budget(each)), notes),
            neighbours=await _neighbours(api, service, notes),
            standing=Standing() if item is None else standing(item),
        ),
        plan=None if item is None else item.status.plan,
        notes=tuple(notes),
    )


async def _neighbours(api: Api, service: Service, notes: list[Note]) -> tuple[Neighbour, ...]:
    """Return the other services of the cluster; where they may not be read, say so, and take them for none."""
    own = (service.namespace, service.name)
    try:
        others = await _listed(api, LLM_SERVICE)
        pods = await _listed(api, POD, labels=f"{names.LABEL_COMPONENT}={names.Component.ENGINE}")
    except ClusterError as error:
        said = f"what other services take of nodes and Budgets is not known, so this is planned as if alone: {error}"
        notes.append(Note(said, warning=True))
        return ()
    return neighbours(
        [each for each in others if (each["metadata"].get("namespace"), each["metadata"]["name"]) != own],
        [
            pod
            for pod in pods
            if (pod["metadata"].get("namespace"), pod["metadata"]["labels"].get(names.LABEL_SERVICE)) != own
        ],
    )


async def _listed(api: Api, kind: Kind, labels: str = "") -> list[Json]:
    try:
        objects, _ = await api.list(kind, labels=labels)
    except ObjectGoneError:
        return []  # an older medley's cluster has no such kind
    return list(objects)


def _understood(objects: Iterable[Json], parse: Callable[[Json], Parsed], notes: list[Note]) -> tuple[Parsed, ...]:
    found: list[Parsed] = []
    for each in objects:
        try:
            found.append(parse(each))
        except InvalidInputError as error:
            notes.append(Note(f"{each.get('kind')} {each['metadata']['name']} is left out: {error}", warning=True))
    return tuple(found)


def lines(observed: Observed, proposal: Proposal, plan: PlanStatus | None, now: datetime) -> tuple[Line, ...]:
    """Return every replica that is there or would be: those that stay, then launches, then those that go.

    What stays costs what it cost (status.plan) before and the catalogue's price after.
    """
    before = _prices_in_force(plan)
    after = proposal.usd_per_replica_hour
    room = Counter(proposal.wanted)
    stay: list[Line] = []
    go: list[Line] = []
    for each in sorted(counted(observed, now), key=_first_to_stay):
        key = each.offering
        if room[key] > 0:
            room[key] -= 1
            stay.append(Line(" ", each.name, key, before.get(key), after.get(key)))
        else:
            go.append(Line("-", each.name, key, before.get(key, after.get(key)), None))
    taken = {each.name for each in observed.replicas}
    launch: list[Line] = []
    for key, count in sorted(room.items()):
        for _ in range(count):
            name = _free_name(observed.service.name, key, taken)
            taken.add(name)
            launch.append(Line("+", name, key, None, after.get(key)))
    by_place = [sorted(part, key=lambda line: (line.offering, line.name)) for part in (stay, launch, go)]
    return tuple(line for part in by_place for line in part)


def _prices_in_force(plan: PlanStatus | None) -> dict[OfferingKey, float]:
    return {
        OfferingKey(shape_of(each.shape), each.market, each.zone): float(each.usd_per_hour) / each.replicas
        for each in (plan.offerings if plan else ())
        if each.usd_per_hour and each.replicas
    }


def _first_to_stay(each: Replica) -> tuple[bool, bool, int, str]:
    return each.outdated, not each.node, -each.running, each.name


def _free_name(service: str, key: OfferingKey, taken: set[str]) -> str:
    number = 0
    while (name := pod_name(service, key, number)) in taken:
        number += 1
    return name


def _totals(found: Sequence[Line]) -> tuple[float | None, float | None]:
    """Return USD per hour of the replicas that are there now, and of those that would be; None where one is unknown."""
    # A replica that stays at a price that no status tells has the catalogue's, and the other way round.
    now = [line.after if line.before is None else line.before for line in found if line.mark != "+"]
    then = [line.before if line.after is None else line.after for line in found if line.mark != "-"]
    return _sum(now), _sum(then)


def _sum(prices: Sequence[float | None]) -> float | None:
    known = [usd for usd in prices if usd is not None]
    return round(math.fsum(known), MICRODOLLARS) if len(known) == len(prices) else None


def _value(found: Sequence[Line], proposal: Proposal) -> dict[str, Any]:
    now, then = _totals(found)
    return {
        "replicas": [
            {
                "change": {" ": "stays", "+": "launched", "-": "removed"}[line.mark],
                "name": line.name,
                "shape": line.offering.shape.key,
                "market": line.offering.market.value,
                "zone": line.offering.zone,
                "usdPerHourBefore": line.before,
                "usdPerHourAfter": line.after,
            }
            for line in found
        ],
        "usdPerHourBefore": now,
        "usdPerHourAfter": then,
        "met": proposal.infeasible is None,
    }


def _show(manifests: Manifests, seen: Seen, found: Sequence[Line], proposal: Proposal, console: Console) -> None:
    service = manifests.service
    what = f"{escape(service.namespace)}/{escape(service.name)}"
    if not seen.there:
        console.print(f"[bold]{what}[/] is not in the cluster: all of it would be new")
    elif all(line.mark == " " for line in found):
        console.print(f"[bold]{what}[/]: no replica would change")
    else:
        launched, removed = (sum(line.mark == mark for line in found) for mark in "+-")
        console.print(
            f"[bold]{what}[/]: {launched} launched, {removed} removed, {len(found) - launched - removed} stay"
        )
    console.print(_table(found))
    now, then = _totals(found)
    if now is None or then is None:
        console.print("what the change costs is not known: a replica is of an offering without a price")
    else:
        colour = "green" if then < now else "red" if then > now else "dim"
        console.print(f"[bold]{money(now)} -> {money(then)} USD/h[/] ([{colour}]{then - now:+.2f}[/])")
    if proposal.infeasible is not None:
        console.print(f"[bold red]cannot be met:[/] {escape(proposal.infeasible.message)}")


_COLOURS = {" ": "", "+": "green", "-": "red"}


def _table(found: Sequence[Line]) -> Table:
    table = Table("", "REPLICA", "SHAPE", "MARKET", "ZONE", "USD/H NOW", "USD/H THEN", box=None)
    table.columns[5].justify = table.columns[6].justify = "right"
    for line in found:
        key = line.offering
        prices = ("" if usd is None else money(usd) for usd in (line.before, line.after))
        table.add_row(
            line.mark, line.name, key.shape.key, str(key.market), key.zone, *prices, style=_COLOURS[line.mark]
        )
    return table
