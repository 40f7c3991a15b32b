"""A containerd root that has the heavy images already, which every machine starts from by hard links.

Used by `cluster` (to pull, once per set of images) and `machine` (to copy). Layers are read-only, so sharing their
inodes is safe, and torch is in the page cache once; the databases are copied.
"""

import hashlib
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from e2e.stage import cgroups, nodeconfig, paths
from e2e.stage.locks import locked
from e2e.stage.processes import run, start, stop, wait_until
from e2e.stage.progress import Board
from e2e.stage.versions import CONTAINERD_TOOL


def folder(references: Iterable[str]) -> Path:
    """Return where the root with these images lies, pulled or not."""
    return paths.cache() / "golden" / hashlib.sha256("\n".join(sorted(references)).encode()).hexdigest()[:12]


def pull(references: tuple[str, ...], board: Board) -> Path:
    """Pull the images unless a finished root has them; the registry must be up."""
    final = folder(references)
    with locked("golden"):  # by any stage of this machine
        if not final.is_dir():
            _pull(references, final, board)
    return final


def _pull(references: tuple[str, ...], final: Path, board: Board) -> None:
    for old in final.parent.glob("*"):  # machines hold their own links
        shutil.rmtree(old)
    partial = final.with_suffix(".partial")
    partial.mkdir(parents=True)
    (partial / "containerd.toml").write_text(nodeconfig.puller(partial))
    write_registry_hosts(partial)
    daemon = start(
        "golden",
        ["unshare", "--mount", "--propagation", "private", *_containerd(partial)],
        pid_file=partial / "pid",
        log=paths.logs() / "golden.log",
        cgroups=cgroups.joined(cgroups.HOST),
    )
    try:
        wait_until(lambda: listens(partial / "c.sock"), timeout_s=20, what="containerd")
        client = [
            str(paths.program(CONTAINERD_TOOL, "ctr")),
            "--address",
            str(partial / "c.sock"),
            "--namespace",
            "k8s.io",
        ]
        for reference in references:
            with board.task(f"pull {reference}"):
                run([*client, "images", "pull", "--local", "--hosts-dir", str(partial / "certs.d"), reference])
    finally:
        stop(daemon)
    partial.rename(final)


def copy(root: Path, machine: Path) -> None:
    """Give a machine its containerd root: hard links to the golden one, and databases of its own."""
    target = machine / "containerd"
    if target.exists():
        shutil.rmtree(target)
    run(["cp", "--archive", "--link", root / "containerd", target])
    for database in target.rglob("*.db"):
        own = database.with_suffix(".new")
        shutil.copy2(database, own)
        own.replace(database)


def write_registry_hosts(where: Path) -> None:
    """Write the file by which containerd finds the registry behind its name, below `where`."""
    name, content = nodeconfig.registry_hosts()
    hosts = where / "certs.d" / name / "hosts.toml"
    hosts.parent.mkdir(parents=True, exist_ok=True)
    hosts.write_text(content)


def listens(path: Path) -> bool:
    """Say whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _containerd(where: Path) -> list[str]:
    return [str(paths.program(CONTAINERD_TOOL, "containerd")), "--config", str(where / "containerd.toml")]
