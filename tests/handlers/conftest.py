"""A world of its own for each test of the handlers."""

import pytest

from tests.handlers.world import world


@pytest.fixture
async def here(plane):
    async with world(plane.kubeconfig) as found:
        yield found
