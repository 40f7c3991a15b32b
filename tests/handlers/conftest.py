"""One real API server, with medley's and Karpenter's CRDs, for all tests of the handlers."""

import time
from pathlib import Path

import pytest

from e2e.stage import paths
from e2e.stage.apiserver import ControlPlane
from e2e.stage.build import build, karpenter_tool
from e2e.stage.processes import StageError
from e2e.stage.progress import Board
from tests.handlers.world import world

ROOT = Path(__file__).parents[2]


def with_karpenter(plane):
    plane.apply(paths.tool(karpenter_tool()) / "crds")
    # A CRD is established a moment before its objects can be listed.
    for kind in ("nodepools.karpenter.sh", "nodeclaims.karpenter.sh"):
        for _ in range(100):
            try:
                plane.kubectl("get", kind)
                break
            except StageError:
                time.sleep(0.1)


@pytest.fixture(scope="package")
def plane():
    build((karpenter_tool(),), Board())
    with ControlPlane() as control_plane:
        control_plane.apply(ROOT / "crds")
        with_karpenter(control_plane)
        yield control_plane


@pytest.fixture
async def here(plane):
    async with world(plane.kubeconfig) as found:
        yield found
