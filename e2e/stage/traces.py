"""What the stage could leave behind on a machine, as one value; used by tests, which compare before and after."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from e2e.stage import build, cgroups, host, network
from e2e.stage.addresses import BRIDGE, INSTANCE, STAGES
from e2e.stage.processes import run
from e2e.stage.versions import UPSTREAM_TOOLS

_SERVERS = frozenset(
    name
    for tool in (*UPSTREAM_TOOLS, build.karpenter_tool(), build.pause_tool())
    for name in tool.binaries
    if name not in ("kubectl", "helm", "ctr")
) | {"docker-registry"}
_SHARED_FOLDERS = ("/run/netns", "/run/containerd", "/var/lib/cni", "/var/lib/kubelet")


@dataclass(frozen=True, slots=True)
class Traces:
    """Everything of the kind that a stage makes, whoever made it, less what another stage of this machine has."""

    processes: frozenset[str]
    links: frozenset[str]
    routes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    packet_filter: str
    settings: dict[str, int]
    folders: frozenset[str]

    @classmethod
    def of_this_machine(cls) -> "Traces":
        """Look around."""
        mounts = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
        trees = (tree / cgroups.ROOT for tree in cgroups.trees())
        return cls(
            processes=_ours(_servers()),
            links=_ours(network.links()),
            routes=_ours(run(["ip", "route", "show", "table", "all"]).splitlines()),
            mounts=_ours(mounts),
            cgroups=frozenset(str(tree) for tree in trees if tree.exists()),
            packet_filter=_packet_filter(),
            settings={} if network.bridges() - {BRIDGE} else host.settings(),  # another stage still needs them
            folders=_ours(str(path) for folder in _SHARED_FOLDERS for path in Path(folder).glob("*")),
        )


def _ours(lines: Iterable[str]) -> frozenset[str]:
    """Leave out what names another stage, or one of the bare API servers of tests."""
    foreign = ["/medley-apiserver-"]
    for number in set(range(STAGES)) - {INSTANCE}:
        tag = str(number) if number else ""
        foreign += [f"/stage{tag}/", f"mdl{number}", f"mdl{tag}-v", f"/netns/medley{tag}-", f"/medley-stage{tag}/"]
    return frozenset(line for line in lines if not any(name in line for name in foreign))


def _servers() -> list[str]:
    """Return the command lines of the servers of stages; people's own kubectl and helm are none."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if Path(words[0]).name in _SERVERS or "e2e.stage.cloud" in words:
            lines.append(f"{' '.join(words)} of {(process / 'cgroup').read_text()}")
    return lines


def _packet_filter() -> str:
    """Return the host's nftables rules, counters left out."""
    done = subprocess.run(["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=True)
    return done.stdout
