"""Which model an engine has and which numbers it computes, as digests that two engines compare. Called at start.

Weights are told apart by their files: names, sizes, and three samples of each. That tells other weights, other
revisions and other quantisations; it is no protection against somebody who forges files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_CONFIGURATION: Final = ("config.json", "quantize_config.json", "hf_quant_config.json", "params.json")
_SAMPLE_BYTES: Final = 1 << 20


def model_digest(path: Path) -> str | None:
    """Return the digest of a model's configuration and weights, None where no weights are (then nobody can say)."""
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.suffix in _WEIGHTS)
    if not files:
        return None
    digest = sha256()
    folder = path.parent if path.is_file() else path
    for name in _CONFIGURATION:
        if (folder / name).exists():
            digest.update(_framed(name.encode(), (folder / name).read_bytes()))
    for file in files:
        size = file.stat().st_size
        digest.update(_framed(file.name.encode(), str(size).encode()))
        with file.open("rb") as reading:
            for place in sorted({0, size // 2, max(0, size - _SAMPLE_BYTES)}):
                reading.seek(place)
                digest.update(_framed(reading.read(_SAMPLE_BYTES)))
    return digest.hexdigest()


def numerics_digest(facts: Mapping[str, str | int]) -> str:
    """Return the digest of everything that decides which numbers an engine computes."""
    return sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()


def _framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
