"""`make demo`: a real cluster, a real model, nodes taken away under load; ends with 0 only if no stream was lost."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from e2e import prepare
from e2e.demo import manifests, story
from e2e.demo.cluster import Cluster
from e2e.demo.load import Load
from e2e.stage import cluster as stage
from e2e.stage.processes import StageError

CONSOLE = Console()
STREAMS = 24
REFERENCES = 24
SMALLEST_COUNT = 200  # streams that a run must have checked to mean something


async def main() -> int:
    """Tell the story; return the exit code."""
    began = time.monotonic()
    _say("A cluster on this machine", "control plane, kubelets, Karpenter, registry; built once, then cached")
    environment = await asyncio.to_thread(prepare.everything, CONSOLE)
    cluster = environment.cluster
    _say("medley, by Helm", "operator with leader election, CRDs, rights")
    await cluster.install(environment.images, f"defaults.engineImage={environment.engine_image}")
    _say("What can be bought, and a service", "kubectl apply")
    await story.apply_catalogue(cluster)
    await story.apply_service(cluster, environment.engine_image)
    _show_plan(await story.planned(cluster))
    with _progress() as progress:
        line = progress.add_task("Karpenter makes nodes, engines load the model", total=None)
        service = await story.serving(cluster, lambda said: progress.update(line, description=said))
    CONSOLE.print(await cluster.kubectl("get", "llmservices,pods", "--namespace", story.NAMESPACE, "-o", "wide"))
    async with Load(await story.entrance_url(cluster), manifests.MODEL, STREAMS) as load:
        _say("Reference answers", "the same prompts, uninterrupted")
        with _progress() as progress:
            line = progress.add_task("prompts without near-ties", total=REFERENCES)
            await load.record_references(REFERENCES, lambda kept: progress.update(line, completed=kept))
        interruptions = await _interrupted(cluster, load)
    return _verdict(load, interruptions, service, time.monotonic() - began)


async def _interrupted(cluster: Cluster, load: Load) -> list[story.Interruption]:
    _say(f"{STREAMS} streams, and the cloud", "a spot node goes with 30 s notice, then another with none")
    taken = []
    with _progress() as progress:
        line = progress.add_task("streams", total=None)
        ended = 0

        def count(_: Any) -> None:
            nonlocal ended
            ended += 1

        running = asyncio.create_task(load.run(count))
        try:
            await asyncio.sleep(5)
            for kind, notice in (("karpenter", 30.0), ("none", 0.0)):

                def watch(said: str) -> None:
                    progress.update(line, description=f"{ended} streams ended · {said}")

                taken.append(await story.take_away(cluster, load, kind, notice, watch=watch))
                await story.serving(cluster, watch)
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


def _verdict(load: Load, taken: list[story.Interruption], service: dict[str, Any], seconds: float) -> int:
    broken = [s for s in load.streams if s.broken]
    table = Table(title="What the clients saw", title_style="bold")
    columns = ("", "streams", "moved", "broken", "pause p50", "p99", "last new request there")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for one in taken:
        counted = one.routers
        silences = [f"≤ {counted.pause_at_most(p):g} s" if counted and one.moved else "—" for p in (50, 99)]
        table.add_row(
            f"{one.notice_seconds:.0f} s notice" if one.notice_seconds else "no notice at all",
            str(len(one.streams)),
            str(one.moved),
            str(sum(s.broken for s in one.streams)),
            *silences,
            f"{one.last_request_after * 1000:+.0f} ms" if one.notice_seconds else "—",
        )
    CONSOLE.print(table)
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
    CONSOLE.rule(f"[bold]{title}[/bold] [dim]{what}[/dim]", align="left")


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=CONSOLE, transient=True)


def _run() -> int:
    try:
        stage.demand_root()
    except StageError as error:
        CONSOLE.print(f"[red]demo:[/red] {error}. Without root: medley demo --local")
        return 1
    try:
        return asyncio.run(main())
    finally:
        if os.environ.get("KEEP") == "1":
            CONSOLE.print("the cluster stays: `python -m e2e.stage kubeconfig` shows how to reach it")
        else:
            prepare.take_down(CONSOLE)


if __name__ == "__main__":
    sys.exit(_run())
