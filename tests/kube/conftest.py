"""One real API server for the tests of what reads and writes it."""

import pytest

from e2e.stage.apiserver import ControlPlane


@pytest.fixture(scope="package")
def plane():
    with ControlPlane() as control_plane:
        yield control_plane
