"""`make demo`: a real cluster, a real model, nodes taken away under load; ends with 0 only if no stream was lost.

STAGE=existing tells the same story on the cluster of KUBECONFIG; the default is the stage of this machine.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from e2e.demo import story
from e2e.demo.cluster import CommandError
from e2e.demo.load import Load
from e2e.demo.place import Place, PlaceError

CONSOLE = Console()
BEGAN = time.monotonic()
STREAMS = 24
REFERENCES = 24
FAILURES = (PlaceError, CommandError, TimeoutError)  # that are told in a line; all others are our bugs
SMALLEST_COUNT = 200  # streams that a run must have checked to mean something


async def main() -> int:
    """Tell the story in the place that STAGE names; return the exit code."""
    place = await _place(os.environ.get("STAGE", ""))
    code = 1
    try:
        code = await _told(place)
    except FAILURES as error:
        _say_no(error)  # before the removal, which may fail as well
    finally:
        if os.environ.get("KEEP") == "1":
            CONSOLE.print(place.ending)
        else:
            await place.take_down()
    return code


async def _place(stage: str) -> Place:
    """Return where to tell the story; what a place needs is imported with it."""
    if stage == "existing":
        from e2e.demo.existing import Existing

        return await Existing.open(os.environ, lambda said: CONSOLE.print(said, soft_wrap=True, markup=False))
    if stage:
        raise PlaceError(
            f"STAGE={stage}: expected `existing` (the cluster of KUBECONFIG), or nothing (a cluster on this machine)"
        )
    from e2e.demo.on_stage import OnStage

    return OnStage.open(CONSOLE)


async def _told(place: Place) -> int:
    _say(*place.opening)
    await place.prepare()
    _say("medley, by Helm", "operator with leader election, CRDs, rights")
    await place.install()
    _say("What can be bought, and a service", "kubectl apply")
    await place.apply()
    _show_plan(await story.planned(place.cluster, place.namespace, place.service))
    with _progress() as progress:
        line = progress.add_task("Karpenter makes nodes, engines load the model", total=None)
        service = await _serving(place, lambda said: progress.update(line, description=said))
    CONSOLE.print(await place.cluster.kubectl("get", "llmservices,pods", "--namespace", place.namespace, "-o", "wide"))
    async with Load(await place.entrance(), place.model, STREAMS, exact=place.exact) as load:
        _say("Reference answers", "the same prompts, uninterrupted")
        with _progress() as progress:
            line = progress.add_task("prompts without near-ties" if place.exact else "prompts", total=REFERENCES)
            await load.record_references(REFERENCES, lambda kept: progress.update(line, completed=kept))
        interruptions = await _interrupted(place, load)
    seconds = time.monotonic() - BEGAN
    records = await place.cluster.kubectl("get", "migrations.medley.dev", "--namespace", place.namespace)
    code = _verdict(load, interruptions, service, records, seconds)
    for remark in place.remarks():
        CONSOLE.print(f"  · {remark}", markup=False)
    return code


async def _serving(place: Place, watch: story.Watch) -> dict[str, Any]:
    return await story.serving(
        place.cluster, watch, seconds=place.patience_seconds, namespace=place.namespace, name=place.service
    )


async def _interrupted(place: Place, load: Load) -> list[story.Interruption]:
    _say(f"{STREAMS} streams, and the cloud", place.taking)
    taken = []
    with _progress() as progress:
        line = progress.add_task("streams", total=None)
        ended = 0

        def count(_: Any) -> None:
            nonlocal ended
            ended += 1

        aimed: story.Aim | None = await story.aim(place)
        # On the node that goes first all answers are long: short ones alone would end there within the notice.
        running = asyncio.create_task(load.run(count, first=load.long))
        try:
            await asyncio.sleep(5)
            for blow in place.blows:

                def watch(said: str) -> None:
                    progress.update(line, description=f"{ended} streams ended · {said}")

                taken.append(await story.take_away(place, load, blow, aimed or await story.aim(place), watch=watch))
                aimed = None  # the next one is chosen when it is there
                await _serving(place, watch)
            while ended < SMALLEST_COUNT:
                progress.update(line, description=f"{ended} of {SMALLEST_COUNT} streams ended")
                await asyncio.sleep(1)
        finally:
            load.stop()
            await running
    return taken


def _show_plan(service: dict[str, Any]) -> None:
    plan = service["status"]["plan"]
    table = Table(title=f"The plan: ${plan['usdPerHour']}/h, all on-demand ${plan['onDemandUSDPerHour']}/h")
    for column in ("offering", "replicas", "$/h"):
        table.add_column(column, justify="left" if column == "offering" else "right")
    for offering in plan["offerings"]:
        name = f"{offering['shape']} · {offering['market']} · {offering['zone']}"
        table.add_row(name, str(offering["replicas"]), str(offering["usdPerHour"]))
    CONSOLE.print(table)
    for unused in plan.get("notUsed", []):
        CONSOLE.print(f"  [dim]{unused['class']}: {unused['reason']}[/dim]")


def _verdict(load: Load, taken: list[story.Interruption], service: dict[str, Any], records: str, seconds: float) -> int:
    broken = [s for s in load.streams if s.broken]
    table = Table(
        title="What the clients saw", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.caption = "ended: before their node went; p50, p99: pauses; last: new request there, after the notice"
    columns = ("", "streams", "moved", "by KV", "ended", "broken", "p50", "p99", "last")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for one in taken:
        counted = one.routers
        silences = [f"≤{counted.pause_at_most(p):g} s" if counted and one.moved else "—" for p in (50, 99)]
        table.add_row(
            one.blow.label,
            str(len(one.streams)),
            str(one.moved),
            str(counted.departed("carried")) if counted and one.blow.notice_seconds else "—",
            str(counted.departed("finished")) if counted and one.blow.notice_seconds else "—",
            str(sum(s.broken for s in one.streams)),
            *silences,
            "—"
            if not one.blow.notice_seconds or math.isnan(one.last_request_after)
            else f"{one.last_request_after * 1000:+.0f} ms",
        )
    CONSOLE.print(table)
    CONSOLE.print("kubectl get migrations", style="bold")
    CONSOLE.print(records, soft_wrap=True, markup=False)
    plan = service["status"]["plan"]
    identical = sum(s.identical is True for s in load.streams)
    CONSOLE.print(
        f"{len(load.streams)} streams, {sum(s.token_count for s in load.streams)} tokens, {len(broken)} broken, "
        f"{identical} identical to an uninterrupted run ({load.screened_out} prompts left out for near-ties)\n"
        f"${plan['usdPerHour']}/h against ${plan['onDemandUSDPerHour']}/h all on-demand · "
        f"whole run {seconds / 60:.1f} min"
    )
    for stream in broken[:5]:
        CONSOLE.print(f"[red]broken[/red] {stream.error or stream.finish_reason}: {stream.token_count} tokens")
    if broken:
        verdict, lost_nothing = f"[red]{len(broken)} streams lost something[/red]", False
    elif not taken[-1].moved or len(load.streams) < SMALLEST_COUNT:
        verdict, lost_nothing = (
            "[red]too little was shown: the node that died had no stream, or too few were checked[/red]",
            False,
        )
    else:
        verdict, lost_nothing = "[green]no stream lost anything[/green]", True
    CONSOLE.print(Panel(verdict))
    return 0 if lost_nothing else 1


def _say(title: str, what: str) -> None:
    minutes, seconds = divmod(round(time.monotonic() - BEGAN), 60)
    CONSOLE.rule(f"[dim]{minutes}:{seconds:02}[/dim] [bold]{title}[/bold] [dim]{what}[/dim]", align="left")


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=CONSOLE, transient=True)


def _say_no(error: Exception) -> None:
    CONSOLE.print(f"[red]demo:[/red] {escape(str(error))}", soft_wrap=True)


def _run() -> int:
    try:
        return asyncio.run(main())
    except FAILURES as error:
        _say_no(error)
        return 1


if __name__ == "__main__":
    sys.exit(_run())
