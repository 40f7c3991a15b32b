"""One real API server, with medley's CRDs, for all tests of the objects."""

from pathlib import Path

import pytest

from e2e.stage.apiserver import ControlPlane

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def plane():
    with ControlPlane() as control_plane:
        control_plane.apply(ROOT / "crds")
        yield control_plane
