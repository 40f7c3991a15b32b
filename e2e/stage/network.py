"""The stage's wires: a bridge on the host, and for each machine a network namespace with a cable to it.

Used by `machine` and `cluster`. Knows iproute2, not what runs behind the wires.
"""

import json
import re
import shutil
from pathlib import Path

from e2e.stage.addresses import BRIDGE, HOST, LINK_PREFIX, NODE_PREFIX, SERVICE_RANGE, TAG, Slot
from e2e.stage.processes import StageError, run

_NAMESPACES = Path("/run/netns")
_PREFIX = f"medley{TAG}-"


def namespace(machine: str) -> str:
    """Return the name of a machine's network namespace."""
    return f"{_PREFIX}{machine}"


def namespace_file(machine: str) -> Path:
    """Return the file by which a machine's network namespace is entered."""
    return _NAMESPACES / namespace(machine)


def lay_bridge() -> None:
    """Make the bridge."""
    if BRIDGE not in links():
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    run(["ip", "address", "replace", f"{HOST}/{NODE_PREFIX}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])


def connect(machine: str, slot: Slot) -> None:
    """Give a machine its namespace, its cable and its addresses, from nothing."""
    disconnect(slot)
    forget(machine)
    space = namespace(machine)
    run(["ip", "netns", "add", space])
    run(["ip", "link", "add", slot.link, "type", "veth", "peer", "name", "eth0", "netns", space])
    run(["ip", "link", "set", slot.link, "master", BRIDGE, "up"])
    inside = ["ip", "-n", space]
    run([*inside, "address", "add", f"{slot.address}/{NODE_PREFIX}", "dev", "eth0"])
    run([*inside, "link", "set", "eth0", "up"])
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "route", "add", "default", "via", HOST])
    run(["nsenter", f"--net={namespace_file(machine)}", "sysctl", "-qw", "net.ipv4.ip_forward=1"])
    run(["ip", "route", "replace", slot.pods, "via", slot.address])


def disconnect(slot: Slot) -> None:
    """Cut a machine's cable: from here on its peers hear nothing from it, no FIN and no RST."""
    _delete_link(slot.link)
    if slot.pods in run(["ip", "route", "show"]):
        run(["ip", "route", "delete", slot.pods])


def forget(machine: str) -> None:
    """Remove a machine's network namespace."""
    if namespace_file(machine).exists():
        run(["ip", "netns", "delete", namespace(machine)])


def reach_services_through(slot: Slot) -> None:
    """Let the host reach ClusterIPs: that machine's kube-proxy translates them."""
    run(["ip", "route", "replace", SERVICE_RANGE, "via", slot.address])


def remove_all() -> None:
    """Remove every wire of the stage, whoever left it behind."""
    for file in sorted(_NAMESPACES.glob(f"{_PREFIX}*")) if _NAMESPACES.exists() else []:
        run(["ip", "netns", "delete", file.name])
    for link in links():
        if link.startswith(LINK_PREFIX):
            _delete_link(link)
    _delete_link(BRIDGE)  # takes the routes over it along


def bridges() -> set[str]:
    """Return the bridges of all stages of this machine."""
    return {link for link in links() if re.fullmatch(r"mdl\d", link)}


def _delete_link(name: str) -> None:
    """Delete an interface; the kernel may be ahead of us, since a cable ends with either of its namespaces."""
    try:
        if name in links():
            run(["ip", "link", "delete", name])
    except StageError:
        if name in links():
            raise


def links() -> set[str]:
    """Return the names of the host's network interfaces."""
    if shutil.which("ip") is None:
        raise StageError("`ip` is not installed: run `python -m e2e.stage build`, as root, with /usr/sbin on the PATH")
    return {link["ifname"] for link in json.loads(run(["ip", "-json", "link", "show"]))}
