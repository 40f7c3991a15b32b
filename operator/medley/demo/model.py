"""The model of demos and tests: made once with vLLM's own libraries, kept in the cache.

Called by `medley demo --local` and by test fixtures. Knows the cache folder and `make_model`, which it runs as a file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from medley.demo.vllm_venv import cache_folder, ensure_venv

_RECIPE = Path(__file__).with_name("make_model.py")


def ensure_model(progress: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of a small chaotic Llama in Hugging Face format; make it (10 s) if it is not there."""
    # Named after its recipe: a changed recipe makes a new model instead of finding the old one.
    recipe = hashlib.sha256(_RECIPE.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / "models" / f"chaotic-llama-{recipe}"
    if folder.exists():
        return folder
    python = ensure_venv(progress)
    progress(f"making the model in {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = tempfile.mkdtemp(dir=folder.parent, prefix=".draft-")
    try:
        subprocess.run((str(python), str(_RECIPE), draft), check=True, stdin=subprocess.DEVNULL)  # noqa: S603  # our own file
        # An image or another user may read it, too. Only a complete folder ever has the name; if another process was
        # faster, its folder is as good.
        for path in Path(draft).iterdir():
            path.chmod(0o644)
        Path(draft).chmod(0o755)
        if not folder.exists():
            os.rename(draft, folder)  # noqa: PTH104  # atomic
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
