"""How vLLM learns of medley's plugin: the metadata of a distribution on its PYTHONPATH. Called by __main__.py.

Written by the supervisor for its own vLLM alone. As an entry point of medley's wheel it would also change every other
vLLM that happens to run in an environment where medley is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_NAME: Final = "medley_vllm_plugin"
_METADATA: Final = f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 1\n"
_ENTRY_POINTS: Final = "[vllm.general_plugins]\nmedley = medley.engine.plugin:register\n"


def write_entry_point(folder: Path) -> None:
    """Write the metadata into `folder`, which vLLM has on its PYTHONPATH."""
    metadata = folder / f"{_NAME}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(_METADATA, encoding="utf-8")
    (metadata / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
