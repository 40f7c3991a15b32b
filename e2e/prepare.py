"""What the demo and the end-to-end tests need before they begin: a cluster, images, a model.

`python -m e2e.prepare` builds it all into the cache and starts nothing, so that tests do not wait in silence.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from e2e.demo.cluster import Cluster
from e2e.nixl import NoNixlError, ensure_nixl
from e2e.stage import cluster as stage
from e2e.stage import hold, images, paths
from e2e.stage.processes import StageError
from e2e.stage.progress import Board
from e2e.stage.versions import HELM_TOOL, KUBERNETES_TOOL
from e2e.vllm_venv import ensure_venv
from medley.demo.model import ensure_model

OURS = {"operator": "operator", "router": "router", "engineInit": "engine"}  # value of the chart -> image


@dataclass(frozen=True, slots=True)
class Environment:
    """A cluster to tell the story on, and the images to tell it with."""

    cluster: Cluster
    images: dict[str, str]  # operator, router, engineInit -> reference
    engine_image: str


def everything(console: Console) -> Environment:
    """Have a running cluster and pushed images; what is there already is left alone."""
    stage.demand_root()
    hold.take(" ".join(["python", "-m", *sys.orig_argv[2:]]))
    board = Board(console)
    stage.up(board)
    references = images.build((*OURS.values(), "vllm-cpu"), board)
    images.push(references, board)
    return Environment(
        Cluster(paths.kubeconfig(), *_programs()),
        {value: references[image] for value, image in OURS.items()},
        references["vllm-cpu"],
    )


def take_down(console: Console) -> None:
    """Remove the stage."""
    stage.down(Board(console))


def _programs() -> tuple[Path, Path]:
    return paths.program(KUBERNETES_TOOL, "kubectl"), paths.program(HELM_TOOL, "helm")


def main() -> int:
    """Build what tests need; say no in one line."""
    console = Console(stderr=True)
    board = Board(console)
    try:
        if os.geteuid() == 0:
            stage.prepare(board)
            images.build(OURS.values(), board)
        with board.task("vLLM environment") as say:
            ensure_venv(say)
        try:
            with board.task("NIXL") as say:
                ensure_nixl(say)
        except NoNixlError as error:
            console.print(f"[yellow]without it its tests are skipped:[/yellow] {error}", highlight=False)
        with board.task("test model") as say:
            ensure_model(say)
    except StageError as error:
        console.print(f"[red]prepare:[/red] {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
