"""Routers of others, from PyPI, each in a virtual environment of its own under the cache, for comparison."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# As measured against; pinned, since a comparison with whatever is newest says nothing.
VLLM_ROUTER = ("vllm-router", "vllm-router==0.1.17")
LITELLM = ("litellm", "litellm[proxy]==1.106.2")
_INSTALL_SECONDS = 1200


def installed(peer: tuple[str, str]) -> Path | None:
    """Return the folder with a peer's commands; None if it cannot be installed here."""
    name, requirement = peer
    cache = Path(os.environ.get("MEDLEY_CACHE") or Path.home() / ".cache" / "medley")
    folder = cache / "peers" / requirement.replace("[", "-").replace("]", "")
    done = folder / "installed"
    if done.exists():
        return folder / "bin"
    commands = (
        (sys.executable, "-m", "venv", str(folder)),
        (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement),
    )
    try:
        for command in commands:
            subprocess.run(command, check=True, timeout=_INSTALL_SECONDS, stdout=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"bench: {name} cannot be installed here: {error}", file=sys.stderr)
        return None
    done.touch()
    return folder / "bin"
