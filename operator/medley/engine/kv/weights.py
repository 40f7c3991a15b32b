"""Where vLLM has a model's files on this machine. Called by the scheduler's half, at start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medley.engine.kv.identity import model_digest


def weights_digest(model_config: Any) -> str | None:
    """Return the digest of the model's files, None if they are not on this machine."""
    path = Path(model_config.model)
    if not path.exists():
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - vLLM's own dependency

        found = try_to_load_from_cache(model_config.model, "config.json", revision=model_config.revision)
        if not isinstance(found, str):
            return None
        path = Path(found).parent
    return model_digest(path)
