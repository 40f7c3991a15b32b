"""The stage as a whole: `up` brings it to what it should be from whatever is there, `down` removes every trace.

Used by `cli` and by end-to-end tests. Every step looks before it acts, so that both may be run again at any time,
after a crash too.
"""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.stage import build, cgroups, controlplane, golden, hold, host, images, machine, market, network, notices, paths
from e2e.stage.addresses import DNS, TAG
from e2e.stage.api import Api
from e2e.stage.apiserver import answers_ready, issue_serving_certificates
from e2e.stage.controlplane import ADDRESSES, Server
from e2e.stage.locks import locked
from e2e.stage.machine import Machine, Site
from e2e.stage.pki import ADMIN, Authority
from e2e.stage.processes import StageError, load, run, start, stop, wait_until
from e2e.stage.progress import Board
from e2e.stage.versions import KUBERNETES_TOOL, UPSTREAM_TOOLS

GOLDEN_IMAGES = ("pause", "coredns", "python-base", "vllm-cpu")
SYSTEM_LABELS = {"stage.medley.dev/role": "system", market.CAPACITY_TYPE: "on-demand"}
STATIC = {"system-a": "stage-a", "system-b": "stage-b"}
"""Machines that are always there, with their zones: no GPU, on demand; for operator, routers and DNS."""


def authority() -> Authority:
    """Return the stage's certificate authority."""
    return Authority(paths.pki())


def api() -> Api:
    """Return the administrator's client of the stage's API server; raise StageError if the stage is down."""
    if not paths.kubeconfig().exists():
        raise StageError("the stage is down: start it with `python -m e2e.stage up`")
    return Api.administrator(authority(), ADDRESSES.server)


def site() -> Site:
    """Return what machines of the running stage have in common."""
    references = json.loads((paths.stage() / "images.json").read_text())
    return Site(authority(), ADDRESSES.server, references["pause"], golden.folder(references.values()))


def prepare(board: Board) -> dict[str, str]:
    """Have every program and heavy image in the cache; return the references of the golden images."""
    build.install_packages(board)
    with ThreadPoolExecutor(2) as pool:  # the image waits for the network while Go has the processor
        heavy = pool.submit(images.build, ("python-base", "vllm-cpu"), board)
        build.build((*UPSTREAM_TOOLS, build.karpenter_tool(), build.pause_tool()), board)
        heavy.result()
    return images.build(GOLDEN_IMAGES, board)


def up(board: Board, *, boot_delay_s: float = 2.0) -> None:
    """Bring the stage up; what runs already is left alone."""
    demand_root()
    with locked(f"stage{TAG}"):
        _up(board, boot_delay_s)


def _up(board: Board, boot_delay_s: float) -> None:
    references = prepare(board)
    for folder in (paths.stage(), paths.logs(), paths.cloud(), paths.machines()):
        folder.mkdir(parents=True, exist_ok=True)
    host.prepare()
    network.lay_bridge()
    cgroups.make(cgroups.HOST)
    with board.task("control plane"):
        start_control_plane()
    images.push(references, board)
    golden.pull(tuple(references.values()), board)
    write_if_changed(paths.stage() / "images.json", json.dumps(references, indent=1))
    _open_market(boot_delay_s)
    with board.task("Karpenter, DNS and the static machines"), ThreadPoolExecutor(len(STATIC)) as pool:
        boots = [pool.submit(_boot_static, name, zone) for name, zone in STATIC.items()]
        _apply_manifests(references)
        for server in (controlplane.karpenter(authority()), controlplane.cloud(sys.executable)):
            _start(server)
        for boot in boots:
            boot.result()
        network.reach_services_through(machine.known()["system-a"].slot)
        client = api()
        wait_until(lambda: STATIC.keys() <= ready_nodes(client), timeout_s=60, what="the static nodes", every_s=0.2)
        for name in STATIC:
            machine.demand_running(name)
        kubectl("--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=60s")


def down(board: Board) -> None:
    """Remove the stage: processes, wires, cgroups, mounts and files. The cache stays."""
    demand_root()
    hold.take("python -m e2e.stage down")  # says no while a demo or a test run of somebody else needs it
    with locked(f"stage{TAG}"), board.task("taking the stage down"):
        # The agent first, or it would boot anew what we destroy.
        if (agent := load(paths.processes() / "cloud")) is not None:
            stop(agent)
        cgroups.kill(cgroups.ROOT)
        network.remove_all()
        host.restore()
        cgroups.remove(cgroups.ROOT)
        for mount in mounts_below(paths.stage()):
            run(["umount", "--lazy", mount])
        if paths.stage().exists():
            shutil.rmtree(paths.stage())
    hold.give_back()


def ready_nodes(client: Api) -> set[str]:
    """Return the names of the nodes whose kubelet was heard lately."""
    return {node["metadata"]["name"] for node in client.items(notices.NODES) if notices.is_ready(node)}


def add_node(name: str, *, zone: str, capacity_type: str, gpus: int) -> Machine:
    """Add a machine that Karpenter knows nothing of, as a node of a plain pool; with GPUs it keeps other pods away."""
    if zone not in market.ZONES:
        raise StageError(f"zone {zone}: the stage has {', '.join(market.ZONES)}")
    labels = {
        market.ZONE: zone,
        market.CAPACITY_TYPE: capacity_type,
        "stage.medley.dev/role": "gpu" if gpus else "system",
    }
    taints = (f"{market.GPU}=present:NoSchedule",) if gpus else ()
    ours = machine.order(name, labels=labels, taints=taints)
    machine.boot(ours, site())
    client, path = api(), f"/api/v1/nodes/{name}"
    wait_until(lambda: client.find(path) is not None, timeout_s=60, what=f"the Node of {name}")
    if gpus:
        capacity = {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(gpus)}
        client.patch(f"{path}/status", [capacity], "json")
    return ours


def remove_node(name: str) -> None:
    """Destroy a static machine and delete its Node; Karpenter's own are removed by deleting their NodeClaim."""
    ours = machine.known().get(name)
    if ours is None:
        raise StageError(f"{name}: no machine has this name; there are: {', '.join(machine.known()) or 'none'}")
    if ours.karpenter:
        raise StageError(f"{name} belongs to Karpenter: use `interrupt {name}`, or delete its NodeClaim")
    machine.destroy(ours)
    api().delete(f"/api/v1/nodes/{name}")


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl as the administrator and return what it printed."""
    program = paths.program(KUBERNETES_TOOL, "kubectl")
    return run([program, "--kubeconfig", paths.kubeconfig(), *arguments], stdin=stdin)


def demand_root() -> None:
    """Say no at once where the stage cannot work."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise StageError("the stage needs root on Linux (network namespaces, cgroups, mounts)")


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points below a folder in our own mount namespace, innermost first."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def write_if_changed(path: Path, content: str) -> None:
    """Write a file at once or not at all; readers see the modification time change only if the content did."""
    if not path.exists() or path.read_text() != content:
        draft = path.with_suffix(".new")
        draft.write_text(content)
        draft.replace(path)


def start_control_plane() -> None:
    """Start what is not running of etcd, registry, API server, controllers and scheduler; wait until it answers."""
    ours = authority()
    issue_serving_certificates(ours, ADDRESSES)
    ours.kubeconfig("admin", ADMIN, ADDRESSES.server)
    for server in (controlplane.etcd(), controlplane.registry(), controlplane.apiserver(ours)):
        _start(server)
    log = paths.logs() / "apiserver.log"
    wait_until(lambda: answers_ready(ours, ADDRESSES.server), timeout_s=60, what=f"the API server (its log is {log})")
    for server in (controlplane.controller_manager(ours), controlplane.scheduler(ours)):
        _start(server)


def _start(server: Server) -> None:
    start(
        server.name,
        server.command,
        pid_file=server.pid_file,
        log=server.log,
        env=server.env,
        cgroups=cgroups.joined(cgroups.HOST),
        niceness=machine.CONTROL_NICENESS,
    )


def _open_market(boot_delay_s: float) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sold = market.instance_types(os.cpu_count() or 1, memory)
    write_if_changed(paths.cloud() / "instance-types.json", json.dumps(sold, indent=1))
    write_if_changed(paths.cloud() / "settings.json", json.dumps({"bootDelaySeconds": boot_delay_s}))
    if not (paths.cloud() / "market.json").exists():
        write_if_changed(paths.cloud() / "market.json", "[]")


def _apply_manifests(references: dict[str, str]) -> None:
    definitions = paths.tool(build.karpenter_tool()) / "crds"
    kubectl("apply", "--server-side", "-f", str(definitions))
    kubectl(
        "wait", "--for=condition=Established", "crd/nodeclaims.karpenter.sh", "crd/kwoknodeclasses.karpenter.kwok.sh"
    )
    kubectl("apply", "--server-side", "-f", "-", stdin=controlplane.manifest("nodeclass", {}))
    kubectl(
        "apply",
        "--server-side",
        "-f",
        "-",
        stdin=controlplane.manifest("coredns", {"image": references["coredns"], "address": DNS}),
    )


def _boot_static(name: str, zone: str) -> None:
    ours = machine.order(name, labels={**SYSTEM_LABELS, market.ZONE: zone})
    machine.boot(ours, site())
