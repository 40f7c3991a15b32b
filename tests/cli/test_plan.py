"""`medley plan`: from manifests to a table, to the status that the operator would write, and to clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medley import __version__
from medley.api.convert import read_llm_service
from medley.cli import main
from medley.cli.manifests import read
from medley.kube.status import status_json
from medley.planning.fleet import Observed
from medley.planning.reconcile import plan
from medley.testing.builders import NOW

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE_FILES = ("llmservice.yaml", "acceleratorclasses.yaml", "performanceprofiles.yaml")
SERVICE = """
apiVersion: medley.dev/v1alpha1
kind: LLMService
metadata: {name: chat}
spec:
  model: {name: llama, maxModelLen: 4096}
  slo: {percentile: 99, tpot: 40ms, ttft: 2s}
  workload:
    requestsPerSecond: 4
    distribution: {histogram: {inputEdges: [100, 1000], outputEdges: [100], weights: [[1], [1]]}}
  spot: {policy: Prefer, onDemandFloor: 20%}
"""
CLASS = """
apiVersion: medley.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: l4}
spec:
  gpu: {product: NVIDIA-L4, memory: 24Gi}
  zones: [{name: zone-a, perHour: "0.70", spotPerHour: "0.28"}]
  nodes: {existing: {nodeSelector: {gpu: l4}, market: MARKET}}
"""
PROFILE = """
apiVersion: medley.dev/v1alpha1
kind: PerformanceProfile
metadata: {name: llama-l4}
spec:
  model: llama
  acceleratorClass: l4
  source: Estimated
  maxModelLen: 4096
  points:
  - {inputTokens: 1000, outputTokens: 100, requestsPerSecond: 2, latencies: [{percentile: 99, ttft: 500ms, tpot: 30ms}]}
"""


def catalogue(market: str = "on-demand") -> str:
    return CLASS.replace("MARKET", market) + "---" + PROFILE


@pytest.fixture
def files(tmp_path: Path):
    def written(*documents: str) -> list[str]:
        paths = []
        for number, document in enumerate(documents):
            path = tmp_path / f"{number}.yaml"
            path.write_text(document)
            paths += ["-f", str(path)]
        return paths

    return written


def ran(*arguments: str):
    return CliRunner().invoke(main, ["plan", *arguments], env={"COLUMNS": "200"})


def test_the_status_that_the_operator_would_write(files):
    result = ran(*files(SERVICE, catalogue()), "-o", "json")
    assert result.exit_code == 0
    # 4 requests/s, 2 per replica, of which 85 % are relied on: three replicas.
    assert json.loads(result.stdout) == {
        "offerings": [
            {"shape": "l4", "market": "on-demand", "zone": "zone-a", "replicas": 3, "ready": 0, "usdPerHour": "2.10"}
        ],
        "routing": {
            "inputEdges": [100, 1000],
            "outputEdges": [100],
            "shares": [
                {"input": 0, "output": 0, "shape": "l4", "share": 1.0},
                {"input": 1, "output": 0, "shape": "l4", "share": 1.0},
            ],
        },
        "usdPerHour": "2.10",
        "onDemandUSDPerHour": "2.10",
        "savedPercent": "0%",
        "gap": "0.00%",
        "notUsed": [],
    }


@pytest.mark.parametrize(
    ("documents", "infeasible"),
    [
        pytest.param([SERVICE, catalogue()], False, id="a plan"),
        pytest.param([(EXAMPLES / name).read_text() for name in EXAMPLE_FILES], False, id="the examples"),
        pytest.param([SERVICE + "  limits: {maxUSDPerHour: '1.00', maxReplicas: 2}", catalogue()], True, id="limits"),
        pytest.param([SERVICE, catalogue("spot")], True, id="no on-demand"),
        pytest.param([SERVICE, CLASS.replace("MARKET", "spot")], True, id="no profile"),
        pytest.param([SERVICE], True, id="no class"),
    ],
)
def test_the_operator_writes_what_the_tool_prints(files, documents, infeasible):
    paths = files(*documents)
    printed = json.loads(ran(*paths, "-o", "json").stdout)
    manifests = read([Path(path) for path in paths[1::2]])
    seen = Observed(service=manifests.service, classes=manifests.classes, profiles=manifests.profiles)
    decided = plan(seen, NOW).status
    assert decided is not None
    written = status_json(read_llm_service(yaml.safe_load(documents[0])), decided, NOW)["plan"]
    assert written == {**printed, "computedAt": "2030-01-01T12:00:00Z"}
    assert ("infeasible" in printed) is infeasible


def test_without_profiles_the_remedy_is_to_write_one(files):
    result = ran(*files(*((EXAMPLES / name).read_text() for name in EXAMPLE_FILES if "profile" not in name)))
    model = "meta-llama/Llama-3.1-8B-Instruct"
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:4] == [
        f"chat: {model}, 1 requests/s, TTFT ≤ 2000 ms and TPOT ≤ 100 ms for 99 % of requests",
        "cannot be met: 1 requests/s stay unserved",
        (
            f"  PerformanceProfile: write a PerformanceProfile, measured or estimated, of {model} on class a10g, h100, l4 or "
            "l40s: there is none"
        ),
        "no replica is planned",
    ]


def test_yaml_and_json_say_the_same(files):
    paths = files(SERVICE, catalogue())
    assert yaml.safe_load(ran(*paths, "-o", "yaml").stdout) == json.loads(ran(*paths, "-o", "json").stdout)


def test_the_table_for_people(files):
    service, catalogue_file = files(SERVICE, catalogue())[1::2]
    result = ran("-f", service, "-c", catalogue_file)
    assert result.exit_code == 0
    assert "chat: llama, 4 requests/s, TTFT ≤ 2000 ms and TPOT ≤ 40 ms for 99 % of requests" in result.stdout
    assert "2.10 USD/h, on-demand alone 2.10 USD/h: saves 0 %" in result.stdout


def test_what_cannot_be_met_is_said_with_status_1(files):
    result = ran(*files(SERVICE, catalogue("spot")))
    assert result.exit_code == 1
    assert (
        "spec.spot.onDemandFloor: 20% of the replicas outside spot are not to be had; lower the floor" in result.stdout
    )


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        pytest.param([CLASS.replace("MARKET", "spot")], "expected one LLMService of medley.dev/v1alpha1, found 0", id="no service"),
        pytest.param([SERVICE, SERVICE], "expected one LLMService of medley.dev/v1alpha1, found 2", id="two services"),
        pytest.param([SERVICE, PROFILE + "---" + PROFILE], "PerformanceProfile llama-l4 is there more than once", id="twice"),
        pytest.param([SERVICE.replace("40ms", "40msec"), catalogue()], "document 1: spec.slo.tpot: expected a duration", id="no unit"),
        pytest.param([SERVICE + "  accelerator: {}"], "spec.accelerator: there is no such field", id="a typo"),
        pytest.param(["a: [b"], "is not YAML", id="not YAML"),
        pytest.param(["- a"], "expected a Kubernetes object with apiVersion and kind", id="not an object"),
        pytest.param(
            [SERVICE + "  accelerators: {classes: [h200]}", catalogue()],
            "spec.accelerators.classes: no AcceleratorClass named h200; there are: l4",
            id="unknown class",
        ),
    ],
)  # fmt: skip
def test_manifests_that_must_be_corrected_are_refused_with_status_2(files, documents, message):
    result = ran(*files(*documents))
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_a_file_that_is_not_there(tmp_path):
    result = ran("-f", str(tmp_path / "none.yaml"))
    assert (result.exit_code, "cannot be read: No such file or directory" in result.stderr) == (2, True)


def test_other_kinds_of_objects_are_passed_over(files):
    other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n"
    assert ran(*files(SERVICE, other + catalogue())).exit_code == 0


def test_the_version():
    assert CliRunner().invoke(main, ["--version"]).stdout == f"medley {__version__}\n"


def test_every_command_is_listed():
    shown = CliRunner().invoke(main, ["--help"]).stdout
    assert all(command in shown for command in ("plan", "operator", "router", "engine", "demo"))


def test_what_is_not_served_keeps_nobody_busy(tmp_path):
    manifests = tmp_path / "all.yaml"
    service = SERVICE.replace("requestsPerSecond: 4", "requestsPerSecond: 40").replace(
        "  spot:", '  limits: {maxUSDPerHour: "3"}\n  spot:'
    )
    manifests.write_text(service + "---" + catalogue())
    done = CliRunner().invoke(main, ["plan", "-f", str(manifests)], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    busy = [int(word.rstrip("%")) for line in done.output.splitlines() if " l4 " in line for word in line.split()[6:7]]
    assert busy
    assert all(each <= 86 for each in busy)  # what is unmet is rounded


def test_a_missing_package_is_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    for name in [name for name in sys.modules if name.startswith("medley.planning.fit")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("medley.cli.profile.fitted")]:
        monkeypatch.delitem(sys.modules, name)
    done = CliRunner().invoke(main, ["profile", "fit", str(tmp_path)])
    assert (done.exit_code, done.output) == (
        2,
        "error: scipy.optimize is missing: install medley with its extra `tool` (pip install '.[tool]')\n",
    )


def test_what_profiles_are_worth_is_said(tmp_path):
    manifests = tmp_path / "all.yaml"
    other = PROFILE.replace("name: llama-l4", "name: misspelt").replace("acceleratorClass: l4", "acceleratorClass: L4")
    manifests.write_text(SERVICE + "---" + catalogue() + "---" + other)
    done = CliRunner().invoke(main, ["plan", "-f", str(manifests)])
    assert done.stderr == (
        "warning: profile misspelt: no AcceleratorClass is named L4\n"
        "note: estimates, not measurements: llama-l4, misspelt; measure with `medley profile measure`\n"
    )
