"""What all tests share: where published data lies, and how Hypothesis looks for counterexamples.

Tests marked `data` compare with files that are not part of the project. MEDLEY_DATA names their folder (the Makefile
sets it); without them these tests are deselected, and a line says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

DATA = Path(os.environ.get("MEDLEY_DATA") or Path(__file__).parents[2] / "shared" / "data")

# No deadline: nothing in the tests asserts on time, and a shared machine is slow at times.
settings.register_profile("medley", deadline=None, print_blob=True)
# A verdict on a commit is the same each time; new counterexamples are for people to find.
settings.register_profile("verdict", settings.get_profile("medley"), derandomize=True)
settings.load_profile("verdict" if os.environ.get("CI") else "medley")

_deselected: list[int] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if DATA.is_dir():
        return
    without = [item for item in items if item.get_closest_marker("data")]
    if without:
        items[:] = [item for item in items if item not in without]
        config.hook.pytest_deselected(items=without)
        _deselected.append(len(without))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if sum(_deselected):
        terminalreporter.write_line(
            f"{sum(_deselected)} tests that compare with published data were left out: {DATA} is not there (MEDLEY_DATA)",
            yellow=True,
        )


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the published data; only tests marked `data` may ask for it."""
    return DATA
