"""`medley explain`: reasons, bounds and what-ifs of a plan; what has to give where there is none."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from medley.cli import main


def ran(*arguments: str):
    return CliRunner().invoke(main, ["explain", *arguments], env={"COLUMNS": "200"})


def test_a_plan_that_is_met(manifests):
    result = ran("-f", manifests, "-o", "json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["usdPerHour"], found["onDemandUSDPerHour"]) == (0.84, 2.1)
    assert found["notUsed"] == [
        {
            "class": "l4", "market": "on-demand", "zone": None, "why": "Dearer",
            "message": "dearer: 0.70 USD/h a node; what is used serves as much for 0.28",
            "usdPerNodeHour": found["notUsed"][0]["usdPerNodeHour"],
        }
    ]  # fmt: skip
    assert found["bounds"] == [
        {"bound": "spec.limits.maxUSDPerHour", "allowed": "40.00", "used": "0.84", "binding": False},
        {"bound": "spec.limits.maxReplicas", "allowed": "10", "used": "3", "binding": False},
        {"bound": "spec.limits.minReplicas", "allowed": "at least 1", "used": "3", "binding": False},
    ]
    margins = found["margins"]
    # One l4 serves 1.7 requests/s for 0.28: 0.165 each; on demand it costs 0.42 more.
    assert margins["requests"] == [
        {"inputTokens": inputs, "outputTokens": 100, "usdPerHour": pytest.approx(0.28 / 1.7)} for inputs in (100, 1000)
    ]
    assert margins["reducedCosts"] == {
        "l4/on-demand/us-east-1a": pytest.approx(0.42),
        "l4/spot/us-east-1a": pytest.approx(0.0),
    }
    assert (margins["bounds"], margins["losses"]) == ({}, {})
    saves = {each["change"]: each["savesUSDPerHour"] for each in found["whatIf"]}
    assert saves["10% more traffic: 4.4 requests/s"] == 0.0
    assert (found["infeasible"], found["relaxations"]) == (None, [])


def test_a_plan_that_cannot_be_met(poor):
    result = ran("-f", poor, "-o", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["infeasible"]["binding"] == "spec.limits.maxUSDPerHour"
    assert (found["whatIf"], found["margins"]) == ([], None)
    assert [(each["change"], each["usdPerHour"], each["moved"]) for each in found["relaxations"]] == [
        ("maxUSDPerHour 0.84 instead of 0.50", 0.84, pytest.approx(0.68)),
        ("1.68 requests/s instead of 4", 0.28, 0.58),
        ("maxUSDPerHour 0.58 instead of 0.50 and 3.4 requests/s instead of 4", 0.56, 0.16),
    ]


def test_the_tables_for_people(manifests, poor):
    met = ran("-f", manifests).stdout
    assert "0.84 USD/h: 3 x l4/spot/us-east-1a" in met
    assert all(heading in met for heading in ("BOUND", "AT THE MARGIN", "NOT USED", "REDUCED COST", "WHAT IF"))
    unmet = ran("-f", poor).stdout
    assert "cannot be met: " in unmet
    assert "WHAT WOULD HAVE TO GIVE" in unmet


def test_yaml_is_json_too(manifests):
    import yaml

    assert yaml.safe_load(ran("-f", manifests, "-o", "yaml").stdout) == json.loads(
        ran("-f", manifests, "-o", "json").stdout
    )


def test_a_manifest_that_must_be_corrected(tmp_path):
    result = ran("-f", str(tmp_path / "none.yaml"))
    assert (result.exit_code, "cannot be read" in result.stderr) == (2, True)
