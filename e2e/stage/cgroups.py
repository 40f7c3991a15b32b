"""The stage's cgroups: every process that belongs to it is in one of them, so that nothing it started can be lost.

    medley-stage/host            control plane, registry, Karpenter, cloud agent
    medley-stage/nodes/NAME      kubelet, containerd and shims in `system`, pods in `kubepods` (made by the kubelet)

Used by `machine` and `cluster`. Works with cgroup v1 (one tree per controller) and v2 (one tree).
"""

import contextlib
import errno
import os
import signal
from pathlib import Path

from e2e.stage.addresses import TAG
from e2e.stage.processes import wait_until

_MOUNT = Path("/sys/fs/cgroup")
ROOT = f"medley-stage{TAG}"
HOST = f"{ROOT}/host"
# Times the usual share of the processor: the stage is many machines. Within it the control plane may take as much as
# all machines together, or leases end whenever engines are busy.
_SHARES = {ROOT: 3}


def of_machine(name: str) -> str:
    """Return the cgroup of a machine, relative to the root of each tree."""
    return f"{ROOT}/nodes/{name}"


def unified() -> bool:
    """Say whether this machine has cgroup v2 alone."""
    return (_MOUNT / "cgroup.controllers").exists()


def trees() -> list[Path]:
    """Return the root of every hierarchy."""
    if unified():
        return [_MOUNT]
    return sorted(tree for tree in _MOUNT.iterdir() if (tree / "cgroup.procs").exists() and not tree.is_symlink())


def make(group: str) -> None:
    """Make a cgroup in every hierarchy, ready for a kubelet to make more below it."""
    for tree in trees():
        folder = tree
        for part in Path(group).parts:
            if unified():
                controllers = (folder / "cgroup.controllers").read_text().split()
                (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
            folder /= part
            folder.mkdir(exist_ok=True)
            if tree.name == "cpuset" and not unified():  # v1: a new cpuset is empty, and takes no process
                for setting in ("cpuset.cpus", "cpuset.mems"):
                    (folder / setting).write_text((folder.parent / setting).read_text())
            times = _SHARES.get(str(folder.relative_to(tree)))
            if times is not None and (tree.name == "cpu" or unified()):
                setting, usual = ("cpu.weight", 100) if unified() else ("cpu.shares", 1024)
                (folder / setting).write_text(str(times * usual))


def joined(group: str) -> list[Path]:
    """Return the folders that a process must join to be found in the group again."""
    return [_home() / group]


def members(group: str) -> set[int]:
    """Return the pids of every process in the group and below it."""
    pids: set[int] = set()
    for listing in (_home() / group).rglob("cgroup.procs"):
        with contextlib.suppress(FileNotFoundError):  # the cgroup went while we looked
            pids.update(map(int, listing.read_text().split()))
    return pids


def kill(group: str) -> None:
    """End every process of the group at once, as a power cut does, and return when none is left."""

    def empty() -> bool:
        pids = members(group)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return not pids

    wait_until(empty, timeout_s=30, what=f"the end of the processes in {group}", every_s=0.02)


def remove(group: str) -> None:
    """Remove an empty group from every hierarchy, innermost first."""
    for tree in trees():
        top = tree / group
        for folder in sorted((top, *(p for p in top.rglob("*") if p.is_dir())), key=lambda p: -len(p.parts)):
            wait_until(lambda folder=folder: _removed(folder), timeout_s=10, what=f"the removal of {folder}")  # type: ignore[misc]


def _removed(folder: Path) -> bool:
    """Remove one folder; False while the kernel still counts a dying process in it."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _home() -> Path:
    """Return the hierarchy in which processes are looked up."""
    return _MOUNT if unified() else _MOUNT / "pids"
