"""Where the stage keeps things. Everything below `cache()` may be deleted: the next run makes it again.

Used by every module of the stage. Reads the environment (MEDLEY_CACHE; MEDLEY_STAGE in `addresses`), touches no file.
"""

import os
from pathlib import Path

from e2e.stage.addresses import TAG
from e2e.stage.versions import GoTool

REPOSITORY = Path(__file__).resolve().parents[2]


def cache() -> Path:
    """Return the folder for what is worth keeping: builds, images, models."""
    return Path(os.environ.get("MEDLEY_CACHE") or Path.home() / ".cache" / "medley")


def tool(tool: GoTool) -> Path:
    """Return the folder with the binaries of one tool at its version."""
    return cache() / "bin" / tool.key


def program(owner: GoTool, name: str) -> Path:
    """Return the path of one binary."""
    return tool(owner) / name


def stage() -> Path:
    """Return the folder of the running stage: state of every process, machine and log. `down` removes it."""
    return cache() / f"stage{TAG}"


def logs() -> Path:
    """Return where the processes of the control plane write their logs."""
    return stage() / "logs"


def processes() -> Path:
    """Return where the pid files lie."""
    return stage() / "processes"


def pki() -> Path:
    """Return where keys, certificates and kubeconfigs lie."""
    return stage() / "pki"


def machines() -> Path:
    """Return the folder that holds one folder per machine."""
    return stage() / "nodes"


def cloud() -> Path:
    """Return where the cloud keeps its market, its settings and the interruptions to come."""
    return stage() / "cloud"


def kubeconfig() -> Path:
    """Return the administrator's kubeconfig of the stage."""
    return pki() / "admin.kubeconfig"
