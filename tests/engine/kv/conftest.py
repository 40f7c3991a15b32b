"""What tests of carrying share."""

from pathlib import Path

import pytest

from e2e.nixl import NoNixlError, ensure_nixl


@pytest.fixture(scope="session")
def nixl() -> Path:
    """A folder with NIXL for vLLM's Python; without it the test is skipped, and a line of the summary says why."""
    try:
        return ensure_nixl()
    except NoNixlError as error:
        pytest.skip(str(error))
