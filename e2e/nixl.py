"""NIXL for the Python of `vllm_venv`, in a folder of the cache: an engine with it in PYTHONPATH can use it.

Used by tests marked `vllm`, `prepare` and `bench`. A folder of its own, so that engines without NIXL stay without.
`MEDLEY_NIXL` names a folder to use instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from e2e.stage.locks import locked
from medley.demo.vllm_venv import cache_folder, ensure_venv, installer

NIXL_VERSION = "1.5.1"
ENVIRONMENT_VARIABLE = "MEDLEY_NIXL"
# Of CUDA 13 since NIXL goes by the venv's torch; it works without a driver. `nixl` alone would bring those of CUDA 12.
_PACKAGES = (f"nixl=={NIXL_VERSION}", f"nixl-cu13=={NIXL_VERSION}")
_CHECK = "from nixl import _bindings as b; print(*b.nixlAgent('check', b.nixlAgentConfig()).getAvailPlugins())"

_MOST_SAID = 300  # characters: the last ones name the cause


class NoNixlError(Exception):
    """NIXL cannot be had on this machine; the message is one line that says why."""


def ensure_nixl(progress: Callable[[str], None] = lambda _: None) -> Path:
    """Return a folder with NIXL and its UCX; install it (about 210 MB) if there is none. NoNixlError says why not."""
    python = ensure_venv(progress)
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        _check(python, Path(named))
        return Path(named)
    abi = _output("asking vLLM's Python", (str(python), "-c", "import sys; print(sys.implementation.cache_tag)"))
    folder = cache_folder() / f"nixl-{NIXL_VERSION}-{abi}"
    with locked(folder.name):
        if folder.exists():
            return folder
        progress(f"installing NIXL {NIXL_VERSION} into {folder}")
        draft = Path(tempfile.mkdtemp(dir=cache_folder(), prefix=".draft-"))
        try:
            # Without what it depends on: that is torch and numpy, which vLLM has.
            to = ("--python", str(python), "--target", str(draft))
            _output("installing", (installer(), "pip", "install", "--quiet", "--no-deps", *to, *_PACKAGES))
            _check(python, draft)
            draft.chmod(0o755)
            draft.rename(folder)  # only a folder that works ever has the name
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _check(python: Path, folder: Path) -> None:
    found = _output(f"using {folder}", (str(python), "-c", _CHECK), {"PYTHONPATH": str(folder)})
    if "UCX" not in found.split():
        raise NoNixlError(f"NIXL: using {folder}: expected the plugin UCX, found {found or 'none'}")


def _output(doing: str, command: tuple[str, ...], variables: dict[str, str] | None = None) -> str:
    """Return the last line that a command prints; NoNixlError with what it complains if it fails."""
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"ended with {done.returncode}"
        raise NoNixlError(f"NIXL: {doing}: {said[-_MOST_SAID:]}")
    return done.stdout.strip().rpartition("\n")[2]
