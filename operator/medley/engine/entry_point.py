"""How vLLM learns of medley's plugin: the metadata of a distribution on its PYTHONPATH. Called by __main__.py.

Written by the supervisor for its own vLLM alone. As an entry point of medley's wheel it would also change every other
vLLM that happens to run in an environment where medley is installed.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

_NAME: Final = "medley_vllm_plugin"
_METADATA: Final = f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 1\n"
_ENTRY_POINTS: Final = """\
[vllm.general_plugins]
medley = medley.engine.plugin:register

[vllm.endpoint_plugins]
medley_kv = medley.engine.kv.endpoints:endpoints
"""
_ENDPOINTS: Final = "vllm.endpoint_plugins"


def allowed_plugins(inherited: str | None) -> str:
    """Return the value of VLLM_PLUGINS that lets ours in and keeps out nothing that would be loaded without it.

    vLLM loads endpoint plugins only if they are named there, and then loads of all other kinds only what is named, too.
    """
    ours = ("medley", "medley_kv")
    if inherited is not None:
        others = [name for name in inherited.split(",") if name]
    else:
        groups = [name for name in sorted(entry_points().groups) if name.startswith("vllm.") and name != _ENDPOINTS]
        others = [each.name for name in groups for each in entry_points(group=name)]
    return ",".join(dict.fromkeys((*others, *ours)))


def write_entry_point(folder: Path) -> None:
    """Write the metadata into `folder`, which vLLM has on its PYTHONPATH."""
    metadata = folder / f"{_NAME}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(_METADATA, encoding="utf-8")
    (metadata / "entry_points.txt").write_text(_ENTRY_POINTS, encoding="utf-8")
