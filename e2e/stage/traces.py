"""What the stage could leave behind on a machine, as one value; used by tests, which compare before and after."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from e2e.stage import build, cgroups, network
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
    """Everything of the kind that the stage makes, whoever made it."""

    processes: frozenset[str]
    links: frozenset[str]
    routes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    packet_filter: str
    forwarding: str
    folders: frozenset[str]

    @classmethod
    def of_this_machine(cls) -> "Traces":
        """Look around."""
        return cls(
            processes=frozenset(_processes_of_the_stage()),
            links=frozenset(network.links()),
            routes=frozenset(run(["ip", "route", "show", "table", "all"]).splitlines()),
            mounts=frozenset(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()),
            cgroups=frozenset(str(p) for tree in cgroups.trees() for p in (tree / cgroups.ROOT).rglob("*")),
            packet_filter=_packet_filter(),
            forwarding=Path("/proc/sys/net/ipv4/ip_forward").read_text(),
            folders=frozenset(str(p) for folder in _SHARED_FOLDERS for p in Path(folder).glob("*")),
        )


def _processes_of_the_stage() -> list[str]:
    """Return the command lines of the stage's servers; people's own kubectl and helm are none."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        line = " ".join(words)
        # API servers of other tests come and go; they live in folders of their own.
        if (Path(words[0]).name in _SERVERS or "e2e.stage.cloud" in words) and "/medley-apiserver-" not in line:
            lines.append(line)
    return lines


def _packet_filter() -> str:
    """Return the host's nftables rules, counters left out."""
    done = subprocess.run(["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=True)
    return done.stdout
