"""What all tests share: published data, how Hypothesis looks for counterexamples, and one real API server.

Tests marked `data` compare with files that are not part of the project. MEDLEY_DATA names their folder (the Makefile
sets it); without them these tests are deselected, and a line says so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from e2e.stage.apiserver import ControlPlane

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MEDLEY_DATA") or Path(__file__).parents[2] / "shared" / "data")

# No deadline: nothing in the tests asserts on time, and a shared machine is slow at times.
settings.register_profile("medley", deadline=None, print_blob=True)
# A verdict on a commit is the same each time; new counterexamples are for people to find.
settings.register_profile("verdict", settings.get_profile("medley"), derandomize=True)
settings.load_profile("verdict" if os.environ.get("CI") else "medley")

# Files whose tests start processes and wait for them, the longest first. They begin first: what only computes fills the
# time beside them, and no worker is left with one of them when the others are done.
WAITING = (
    "engine/test_supervisor.py",
    "demo/test_existing.py",
    "handlers/test_life.py",
    "handlers/test_faults.py",
    "engine/test_front.py",
    "chart/test_installed.py",
    "api/test_agreement.py",
    "api/test_served.py",
    "router/test_moves.py",
    "stage/test_apiserver.py",
    "soak/test_short.py",
    "router/test_follow.py",
    "router/test_main.py",
    "router/test_rollout.py",
)

_deselected: list[int] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rank = {f"tests/{name}": number for number, name in enumerate(WAITING)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))  # others stay in their order
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
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())
    )
    for reason, count in skipped.items():
        terminalreporter.write_line(f"{count} tests were left out: {reason}", yellow=True)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the published data; only tests marked `data` may ask for it."""
    return DATA


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """One real API server with medley's and Karpenter's CRDs; who makes services, pods or what has no namespace removes it.

    It takes seconds to start, and costs something as long as it runs: so there is one a process, for all that need no
    controllers.
    """
    from e2e.stage.apiserver import ControlPlane
    from e2e.stage.build import build, karpenter_tool
    from e2e.stage.progress import Board
    from tests.apiserver import with_karpenter

    build((karpenter_tool(),), Board())
    with ControlPlane() as control_plane:
        control_plane.apply(ROOT / "crds")
        with_karpenter(control_plane)
        yield control_plane
