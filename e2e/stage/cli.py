"""The stage's commands; `python -m e2e.stage` calls `main`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from e2e.stage import cloud, cluster, controlplane, images, machine, market, notices, paths
from e2e.stage.durations import seconds
from e2e.stage.processes import StageError, load
from e2e.stage.progress import Board
from e2e.stage.versions import HELM_TOOL, KUBERNETES_TOOL

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
node = typer.Typer(help="Machines that Karpenter knows nothing of.", no_args_is_help=True)
app.add_typer(node, name="node")
console = Console(highlight=False)


@app.command()
def build() -> None:
    """Compile and build everything that `up` needs into the cache (20 minutes on a bare machine, seconds after)."""
    cluster.prepare(Board())


@app.command()
def up(boot_delay: Annotated[str, typer.Option(help="Time from a Node's order to its machine's boot.")] = "2s") -> None:
    """Start the cluster, or repair it."""
    began = time.monotonic()
    cluster.up(Board(), boot_delay_s=seconds(boot_delay))
    console.print(f"The stage is up after {time.monotonic() - began:.0f} s. Look around with:")
    programs = f"{paths.tool(KUBERNETES_TOOL)}:{paths.tool(HELM_TOOL)}"
    console.print(f"  export KUBECONFIG={paths.kubeconfig()} PATH={programs}:$PATH", soft_wrap=True)


@app.command()
def down() -> None:
    """Remove the cluster; builds and images stay in the cache."""
    cluster.down(Board())


@app.command()
def kubeconfig() -> None:
    """Print where the administrator's kubeconfig lies."""
    cluster.api()
    typer.echo(paths.kubeconfig())


@app.command()
def status() -> None:
    """Show what runs: processes, machines, nodes, interruptions."""
    table = Table("process", "pid", "log", title="host")
    for pid_file in sorted(paths.processes().glob("*")):
        process = load(pid_file)
        shown = "[red]dead[/red]" if process is None else str(process.pid)
        table.add_row(pid_file.name, shown, str(paths.logs() / f"{pid_file.name}.log"))
    console.print(table)
    nodes = {n["metadata"]["name"]: n for n in cluster.api().items(notices.NODES)}
    table = Table("machine", "runs", "Node", "type", "market", "zone", "GPUs", title="machines")
    known = machine.known()
    for name in sorted(known.keys() | nodes.keys()):
        found = nodes.get(name)
        labels = found["metadata"]["labels"] if found else {}
        ready = "—" if found is None else "Ready" if notices.is_ready(found) else "NotReady"
        gpus = found["status"].get("capacity", {}).get(market.GPU, "0") if found else "—"
        kind = labels.get("node.kubernetes.io/instance-type", "—")
        runs = "yes" if name in known and known[name].runs else "no"
        table.add_row(name, runs, ready, kind, labels.get(market.CAPACITY_TYPE), labels.get(market.ZONE), gpus)
    console.print(table)
    for each in cloud.interruptions().values():
        left = each.at - time.time()
        state = f"goes in {left:.0f} s" if each.died is None else "gone, its Node is being cleared away"
        console.print(f"{each.node}: {each.form} notice, {state}", soft_wrap=True)


@app.command("images")
def build_images(names: Annotated[list[str] | None, typer.Argument(help="All, if none is named.")] = None) -> None:
    """Build images, push them if the stage is up, and print NAME=REFERENCE lines."""
    board = Board()
    references = images.build(names or tuple(images.recipes()), board)
    if load(paths.processes() / "registry") is not None:
        images.push(references, board)
    for name, reference in references.items():
        typer.echo(f"{name}={reference}")


@app.command()
def model(
    namespace: Annotated[str, typer.Option(help="Where pods will use it.")] = "default",
    name: Annotated[str, typer.Option(help="Name of the PersistentVolumeClaim.")] = "model",
) -> None:
    """Make the small test model, and offer it to a namespace as a PersistentVolumeClaim."""
    from e2e.stage.volumes import offer_model

    typer.echo(offer_model(namespace, name, Board()))


@app.command()
def interrupt(
    name: Annotated[str, typer.Argument(metavar="NODE")],
    after: Annotated[str, typer.Option(help="From notice to power-off, such as 30s or 2m.")] = "30s",
    form: Annotated[
        notices.Form, typer.Option("--as", help="The form in which the notice comes.")
    ] = notices.Form.KARPENTER,
) -> None:
    """Take a node away as a cloud takes spot nodes: a notice, then power-off, whatever anybody does."""
    given = cloud.interrupt(cluster.api(), name, form, seconds(after))
    times = f"given at {given.noticed:.3f}, power-off at {given.at:.3f} (epoch)"
    console.print(f"{name}: notice ({form}) {times}", soft_wrap=True)


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="A name from the list, or NAMESPACE/POD.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n")] = 100,
) -> None:
    """List every log, or show the end of one: a process, MACHINE/PROGRAM, or NAMESPACE/POD."""
    found = every_log()
    if name is None:
        for key, path in found.items():
            console.print(f"{key:40} {path}", soft_wrap=True)
    elif name in found:
        sys.stdout.write("".join(found[name].read_text(errors="replace").splitlines(keepends=True)[-lines:]))
    elif "/" in name:
        namespace, _, pod = name.partition("/")
        arguments = ("logs", pod, "--all-containers", "--prefix", f"--tail={lines}")
        sys.stdout.write(cluster.kubectl("--namespace", namespace, *arguments))
    else:
        raise StageError(f"log {name}: unknown; `python -m e2e.stage logs` lists what there is")


@node.command("add")
def node_add(
    name: str,
    zone: Annotated[str, typer.Option()] = market.ZONES[0],
    capacity_type: Annotated[str, typer.Option("--market", help="spot or on-demand")] = "on-demand",
    gpus: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Add a machine."""
    cluster.add_node(name, zone=zone, capacity_type=capacity_type, gpus=gpus)


@node.command("rm")
def node_rm(name: str) -> None:
    """Remove a machine that `node add` made."""
    cluster.remove_node(name)


def every_log() -> dict[str, Path]:
    """Return every log file of host and machines, dead machines included, by a short name."""
    found = {path.stem: path for path in sorted(paths.logs().glob("*.log"))}
    if controlplane.audit_log().exists():
        found["audit"] = controlplane.audit_log()
    folders = {ours.name: ours.folder for ours in machine.known().values()}
    folders |= {buried.name: buried for buried in (paths.logs() / "machines").glob("*")}
    for name, folder in folders.items():
        found |= {f"{name}/{path.stem}": path for path in sorted(folder.glob("*.log"))}
        for path in sorted(folder.glob("pods/*/*/*.log")):  # pods/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log
            found[f"{name}/{path.parents[1].name.rpartition('_')[0]}/{path.parent.name}/{path.stem}"] = path
    return found


def main() -> None:
    """Run a command; a refusal is one line on stderr, not a traceback."""
    try:
        app(standalone_mode=True)
    except StageError as error:
        Console(stderr=True, highlight=False).print(f"[red]stage:[/red] {error}", soft_wrap=True)
        sys.exit(1)
