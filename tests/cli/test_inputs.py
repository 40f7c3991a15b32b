"""`medley plan` with a trace, price lists and spot history: what takes the place of what, and what is said of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medley.cli import main
from medley.cli.inputs import Options, overlaid
from medley.cli.manifests import read
from medley.core.service import WorkloadSource
from tests.cli.conftest import aside


def ran(*arguments: str):
    return CliRunner().invoke(main, ["plan", *arguments], env={"COLUMNS": "200"})


def status(*arguments: str):
    result = ran(*arguments, "-o", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def trace(tmp_path: Path, per_second: int) -> str:
    path = tmp_path / "requests.csv"
    rows = [f"{second + number / per_second},500,50" for second in range(121) for number in range(per_second)]
    path.write_text("\n".join(["time,input_tokens,output_tokens", *rows]))
    return str(path)


def history(tmp_path: Path, usd: str = "0.14", kind: str = "g6.xlarge", at: str = "2020-01-01T00:00:00Z") -> str:
    entry = {
        "InstanceType": kind, "AvailabilityZone": "us-east-1a", "ProductDescription": "Linux/UNIX", "SpotPrice": usd,
        "Timestamp": at,
    }  # fmt: skip
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"SpotPriceHistory": [entry]}))
    return str(path)


def nodes(tmp_path: Path) -> str:
    path = tmp_path / "nodes.csv"
    path.write_text("0,10\n10,10\n10,9\n20,9\n")
    return str(path)


def test_the_trace_takes_the_place_of_the_forecast(manifests, tmp_path):
    assert status("-f", manifests)["offerings"][0]["replicas"] == 3
    # 10 requests/s, 1.7 per replica; only inputs of up to 1000 tokens are left.
    found = status("-f", manifests, "--trace", trace(tmp_path, 10), "--trace-rate", "peak", "--trace-window", "10s")
    assert found["offerings"][0]["replicas"] == 6
    assert [share["input"] for share in found["routing"]["shares"]] == [1]


def test_the_trace_takes_the_place_of_what_routers_measured(manifests, tmp_path):
    asked = read([Path(manifests)])
    found, _ = overlaid(asked, Options(trace=Path(trace(tmp_path, 10))), datetime(2030, 1, 1, tzinfo=UTC))
    sources = asked.service.workload_source, found.service.workload_source
    assert sources == (WorkloadSource.OBSERVED, WorkloadSource.FORECAST)


def test_what_the_trace_says_is_told_beside_the_plan(manifests, tmp_path):
    told = aside(ran("-f", manifests, "--trace", trace(tmp_path, 2)))
    assert "242 requests in 2 min; requests/s over windows of 60 s: mean 2, p50 2" in told
    assert "planned for: p95" in told
    assert "burstiness (Poisson arrivals: 1): squared variation of gaps 0" in told


def test_a_trace_without_times_leaves_the_rate(manifests, tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n50,50\n20000,50\n")
    result = ran("-f", manifests, "--trace", str(path))
    assert "warning:" in aside(result)
    assert "2 requests without times: sizes are taken from it, the rate stays the 4 requests/s" in aside(result)
    assert "1 requests (50.0%) are larger than the largest size of the grid" in aside(result)


def test_prices_take_the_place_of_the_catalogues_and_old_ones_are_told(manifests, tmp_path):
    result = ran("-f", manifests, "--prices", history(tmp_path), "-o", "json")
    assert json.loads(result.stdout)["usdPerHour"] == "0.42"
    assert "note: l4 spot us-east-1a: 0.14 USD per node-hour instead of 0.28" in aside(result)
    assert "AWS spot, last: prices are" in aside(result)
    assert "save them again, or say --stale-after if they still hold" in aside(result)
    assert "are days old" not in aside(ran("-f", manifests, "--prices", history(tmp_path), "--stale-after", "100000"))


def test_the_mean_of_a_spot_history(manifests, tmp_path):
    assert status("-f", manifests, "--spot-history", history(tmp_path, "0.10"))["usdPerHour"] == "0.30"


def test_nodes_over_time_say_how_often_spot_is_lost(manifests, tmp_path):
    result = ran("-f", manifests, "--spot-history", f"l4/us-east-1a={nodes(tmp_path)}:h")
    assert result.exit_code == 0
    # One loss in 10 x 10 + 10 x 9 node-hours.
    assert "l4 spot us-east-1a: one node is lost 0.00526 times per hour" in aside(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--trace", "none.csv"], "none.csv: cannot be read", id="no trace"),
        pytest.param(["--prices", "none.json"], "none.json: cannot be read", id="no prices"),
        pytest.param(["--trace-window", "5"], "--trace-window: expected a duration such as 40ms", id="no unit"),
        pytest.param(["--prices", "p5"], "prices nothing in the catalogue: it names p5.4xlarge spot us-east-1a; the catalogue offers l4 on-demand us-east-1a, l4 spot us-east-1a", id="other types"),
        pytest.param(["--spot-history", "l4=nodes"], "does not say in which unit its times are; name it, as in l4=", id="no unit of nodes"),
        pytest.param(["--spot-history", "a100=nodes:h"], "--spot-history: the catalogue offers no spot of a100; it offers l4/us-east-1a", id="unknown class"),
        pytest.param(["--spot-history", "l4/eu-1=nodes:h"], "no spot of l4/eu-1", id="unknown zone"),
        pytest.param(["--spot-history", "plain"], "is not AWS spot price history; give it to --prices", id="another list"),
    ],
)  # fmt: skip
def test_what_must_be_corrected_is_refused_with_status_2(manifests, tmp_path, options, message):
    (tmp_path / "plain.yaml").write_text(
        '{date: 2026-11-01, source: us, prices: [{class: l4, market: spot, perHour: "1"}]}'
    )
    words = {
        "p5": history(tmp_path, kind="p5.4xlarge"),
        "plain": str(tmp_path / "plain.yaml"),
        "l4=nodes": f"l4={nodes(tmp_path)}",
        "a100=nodes:h": f"a100={nodes(tmp_path)}:h",
        "l4/eu-1=nodes:h": f"l4/eu-1={nodes(tmp_path)}:h",
    }
    result = ran("-f", manifests, *(words.get(option, option) for option in options))
    assert result.exit_code == 2
    assert message in aside(result)


def test_a_picture_is_drawn(manifests, tmp_path):
    path = tmp_path / "plan.png"
    assert ran("-f", manifests, "--picture", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("plan.bmp", "--picture: expected a name that ends in .png, .pdf, .svg", id="another format"),
        pytest.param("none/plan.png", "cannot be written: No such file or directory", id="no folder"),
    ],
)
def test_a_picture_that_cannot_be_drawn(manifests, tmp_path, name, message):
    result = ran("-f", manifests, "--picture", str(tmp_path / name))
    assert (result.exit_code, message in aside(result)) == (2, True)
