"""The tests of a module share one stage: it comes up with the first that wants it, and goes with the last."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from rich.console import Console

from e2e import prepare


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the stage out where there is no root, and say so in one line."""
    if os.geteuid() == 0:
        return
    kept = [item for item in items if "stage" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "stage" in item.keywords])
    items[:] = kept
    Console(stderr=True).print("the stage needs root: its tests are deselected")


@pytest.fixture(scope="module")
def environment() -> Generator[prepare.Environment, None, None]:
    """A running cluster with medley's images in its registry."""
    console = Console(stderr=True)
    yield prepare.everything(console)
    if os.environ.get("KEEP") != "1":
        prepare.take_down(console)
