"""A machine of the stage: network and mount namespace with containerd, kubelet and kube-proxy of their own.

Used by `cluster` (static nodes) and `cloud` (those Karpenter asked for). Everything of a machine lies in one folder,
one cgroup, one network namespace and one mount namespace, so that taking it away leaves nothing.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from e2e.stage import cgroups, golden, network, nodeconfig, paths
from e2e.stage.addresses import TAG, Slot, free_slot
from e2e.stage.locks import locked
from e2e.stage.pki import Authority, Identity
from e2e.stage.processes import Process, StageError, load, run, start, wait_until
from e2e.stage.versions import CONTAINERD_TOOL, KUBERNETES_TOOL

# A control plane has cores of its own elsewhere. Here engines would starve it, and nodes seem dead that are not.
CONTROL_NICENESS = -10
PROGRAMS = ("containerd", "kubelet", "kube-proxy")
_KUBE_PROXY = Identity("system:kube-proxy")


@dataclass(frozen=True, slots=True)
class Site:
    """What every machine of one stage has in common."""

    authority: Authority
    server: str
    pause_image: str
    golden: Path


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine as it was ordered; `karpenter` says whose Node it plays, `labels` is what its kubelet registers."""

    name: str
    number: int
    karpenter: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return paths.machines() / str(self.number)  # short: a socket's path ends at 107 characters

    @property
    def slot(self) -> Slot:
        return Slot(self.number)

    @property
    def cgroup(self) -> str:
        return cgroups.of_machine(self.name)

    def process(self, program: str) -> Process | None:
        """Return the live process of one of `PROGRAMS`."""
        return load(self.folder / f"{program}.pid")

    @property
    def runs(self) -> bool:
        return all(self.process(program) is not None for program in PROGRAMS)

    def log(self, program: str) -> Path:
        return self.folder / f"{program}.log"


def known() -> dict[str, Machine]:
    """Return the machines that were ordered and not destroyed, by name; they may or may not run."""
    machines = {}
    for file in sorted(paths.machines().glob("*/machine.json")):
        ordered = json.loads(file.read_text())
        machines[ordered["name"]] = Machine(**(ordered | {"taints": tuple(ordered["taints"])}))
    return machines


def order(name: str, *, karpenter: bool = False, labels: dict[str, str], taints: tuple[str, ...] = ()) -> Machine:
    """Reserve a place for a machine, or return the one that has this name already."""
    with locked(f"places{TAG}"):
        machines = known()
        if name in machines:
            return machines[name]
        machine = Machine(name, free_slot(m.number for m in machines.values()).number, karpenter, labels, taints)
        machine.folder.mkdir(parents=True, exist_ok=True)
        draft = machine.folder / "machine.new"
        draft.write_text(json.dumps(asdict(machine), indent=1))
        draft.replace(machine.folder / "machine.json")
        return machine


def boot(machine: Machine, site: Site) -> None:
    """Start an ordered machine; one that runs is left alone, one that half runs is started from nothing."""
    if machine.runs:
        return
    power_off(machine)
    folder = machine.folder
    for name in ("cni", "cni-data", "kubelet", "pods", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    golden.copy(site.golden, folder)
    golden.write_registry_hosts(folder)
    (folder / "containerd.toml").write_text(nodeconfig.containerd(folder, site.pause_image))
    (folder / "cni" / "10-pods.conflist").write_text(nodeconfig.cni(folder, machine.slot))
    network.connect(machine.name, machine.slot)
    cgroups.make(f"{machine.cgroup}/system")
    _start_containerd(machine)
    wait_until(lambda: golden.listens(folder / "c.sock"), timeout_s=30, what=f"containerd of {machine.name}")
    _start_kubelet(machine, site)
    _start_kube_proxy(machine, site)


def demand_running(name: str) -> None:
    """Raise StageError, with the last words of the program that ended, if a machine does not run whole."""
    ours = known()[name]
    for program in PROGRAMS:
        if ours.process(program) is None:
            said = ours.log(program).read_text(errors="replace").splitlines()[-3:]
            raise StageError(f"{program} of {name} ended; `up` again starts it: {' | '.join(said)}")


def destroy(machine: Machine) -> None:
    """Take a machine away for good. Nobody on it or beside it is told; its logs stay."""
    power_off(machine)
    cgroups.remove(machine.cgroup)
    # Its logs stay to be read: what a dead machine said last is what one wants to know.
    buried = paths.logs() / "machines" / machine.name
    buried.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        if machine.log(program).exists():
            machine.log(program).replace(buried / f"{program}.log")
    if (machine.folder / "pods").exists():
        (machine.folder / "pods").replace(buried / "pods")
    scrap = paths.stage() / "scrap" / machine.name
    scrap.parent.mkdir(exist_ok=True)
    machine.folder.replace(scrap)  # from here on its place is free; so many files take seconds to remove
    shutil.rmtree(scrap)


def power_off(machine: Machine) -> None:
    """End everything on a machine at once: the cable first, so that no dying process says goodbye, then the power."""
    network.disconnect(machine.slot)
    cgroups.kill(machine.cgroup)
    network.forget(machine.name)
    for program in PROGRAMS:
        (machine.folder / f"{program}.pid").unlink(missing_ok=True)


def _start(machine: Machine, program: str, command: list[str]) -> None:
    start(
        program,
        command,
        pid_file=machine.folder / f"{program}.pid",
        log=machine.log(program),
        env={"PATH": f"{paths.tool(CONTAINERD_TOOL)}:/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"},
        cgroups=cgroups.joined(f"{machine.cgroup}/system"),
        niceness=0 if program == "containerd" else CONTROL_NICENESS,  # containers inherit containerd's
    )


def _start_containerd(machine: Machine) -> None:
    # A mount namespace of its own: mounts die with the machine, and folders that programs know by a fixed name (sockets
    # of shims, device plugins, the CNI's cache) are its own. nsenter, not `ip netns exec`: that one hides the cgroup
    # mounts from the kubelet.
    own = ("/run/containerd", "/var/lib/cni", "/var/lib/kubelet")
    for folder in own:
        Path(folder).mkdir(parents=True, exist_ok=True)
    mounts = " && ".join(["mount --make-rshared /", *(f"mount -t tmpfs -o mode=755 medley {folder}" for folder in own)])
    # A device manager that has seen no checkpoint sets extended resources to zero: the GPUs that Karpenter promised.
    checkpoint = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"
    mounts += f" && mkdir /var/lib/kubelet/device-plugins && echo '{{}}' > {checkpoint}"
    enter = ["nsenter", f"--net={network.namespace_file(machine.name)}"]
    unshare = ["unshare", "--mount", "--propagation", "private"]
    containerd = [str(paths.program(CONTAINERD_TOOL, "containerd")), "--config", f"{machine.folder}/containerd.toml"]
    _start(machine, "containerd", [*enter, *unshare, "/bin/sh", "-c", f'{mounts} && exec "$@"', "boot", *containerd])


def _start_kubelet(machine: Machine, site: Site) -> None:
    configuration = machine.folder / "kubelet.json"
    configuration.write_text(nodeconfig.kubelet(machine.folder, site.authority.certificate, machine.cgroup))
    who = node_identity(machine.name)
    kubeconfig = site.authority.kubeconfig(f"node-{machine.name}", who, site.server, lent_by="admin")
    options = [
        f"--config={configuration}",
        f"--kubeconfig={kubeconfig}",
        f"--root-dir={machine.folder}/kubelet",
        f"--hostname-override={machine.name}",
        f"--node-ip={machine.slot.address}",
        "--v=2",
    ]
    if machine.labels:
        options.append("--node-labels=" + ",".join(f"{k}={v}" for k, v in sorted(machine.labels.items())))
    if machine.taints:
        options.append("--register-with-taints=" + ",".join(machine.taints))
    _start(machine, "kubelet", [*_inside(machine), str(paths.program(KUBERNETES_TOOL, "kubelet")), *options])


def _start_kube_proxy(machine: Machine, site: Site) -> None:
    configuration = machine.folder / "kube-proxy.json"
    kubeconfig = site.authority.kubeconfig("kube-proxy", _KUBE_PROXY, site.server)
    configuration.write_text(nodeconfig.kube_proxy(kubeconfig, machine.name))
    program = str(paths.program(KUBERNETES_TOOL, "kube-proxy"))
    _start(machine, "kube-proxy", [*_inside(machine), program, f"--config={configuration}"])


def node_identity(name: str) -> Identity:
    """Return whom a machine's kubelet speaks as."""
    return Identity(f"system:node:{name}", ("system:nodes",))


def _inside(machine: Machine) -> list[str]:
    """Return the words that run a command inside the machine, once its containerd runs."""
    containerd = machine.process("containerd")
    assert containerd is not None, f"containerd of {machine.name} ended: read {machine.log('containerd')}"
    return ["nsenter", "--target", str(containerd.pid), "--net", "--mount"]


def execute(machine: Machine, command: list[str]) -> str:
    """Run a command inside the machine and return what it printed."""
    return run([*_inside(machine), *command])
