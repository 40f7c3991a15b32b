from pathlib import Path
from typing import Any

import pytest

from e2e.stage import cloud
from e2e.stage.cloud import Interruption, interruptions, is_due
from e2e.stage.notices import Form, is_ready

CREATED = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def a_node(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n", "creationTimestamp": "2027-01-15T08:00:00Z", **metadata}}


@pytest.mark.parametrize(
    ("node", "now", "due"),
    [
        pytest.param(a_node(), CREATED + 1.9, False, id="before the delay"),
        pytest.param(a_node(), CREATED + 2.0, True, id="after the delay"),
        pytest.param(a_node(deletionTimestamp="2027-01-15T08:00:01Z"), CREATED + 9, False, id="on its way out"),
    ],
)
def test_a_node_has_its_machine_after_the_boot_delay(node: dict[str, Any], now: float, due: bool) -> None:  # noqa: FBT001
    assert is_due(node, 2.0, now) is due


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([], False),
        ([{"type": "Ready", "status": "True"}], True),
        ([{"type": "Ready", "status": "Unknown"}], False),
        ([{"type": "DiskPressure", "status": "True"}], False),
    ],
)
def test_a_node_is_ready_by_its_condition_alone(conditions: list[dict[str, str]], ready: bool) -> None:  # noqa: FBT001
    assert is_ready({"status": {"conditions": conditions}}) is ready


def test_an_interruption_is_found_again_and_ends_in_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path))
    interruption = Interruption("n", Form.NTH, CREATED, noticed=CREATED - 30)
    interruption.save()
    assert interruptions() == {"n": interruption}
    interruption.forget()
    assert (interruptions(), interruptions("history")) == ({}, {"n": interruption})


def test_a_pass_reads_the_delay_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path))
    settings = tmp_path / "stage" / "cloud" / "settings.json"
    settings.parent.mkdir(parents=True)
    for delay in (2.0, 45.5):
        settings.write_text(f'{{"bootDelaySeconds": {delay}}}')
        assert cloud.boot_delay_s() == delay
