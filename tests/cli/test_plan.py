"""`medley plan`: from manifests to a table, to the status that the operator would write, and to clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import medley.cli.profile
from medley import __version__
from medley.api.convert import read_llm_service
from medley.cli import main
from medley.cli.manifests import read
from medley.kube.status import status_json
from medley.planning.fleet import Observed
from medley.planning.reconcile import plan
from medley.testing.builders import NOW
from tests.cli import conftest
from tests.cli.conftest import CLASS, PROFILE, aside, existing

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE_FILES = ("llmservice.yaml", "acceleratorclasses.yaml", "performanceprofiles.yaml")
SERVICE = conftest.SERVICE + "  spot: {policy: Prefer, onDemandFloor: 20%}\n"


def catalogue(market: str = "on-demand") -> str:
    return conftest.catalogue(existing(market))


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
            {
                "shape": "l4",
                "market": "on-demand",
                "zone": "us-east-1a",
                "replicas": 3,
                "ready": 0,
                "usdPerHour": "2.10",
            }
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
        "doubts": [],
    }


@pytest.mark.parametrize(
    ("documents", "infeasible"),
    [
        pytest.param([SERVICE, catalogue()], False, id="a plan"),
        pytest.param([(EXAMPLES / name).read_text() for name in EXAMPLE_FILES], False, id="the examples"),
        pytest.param([SERVICE + "  limits: {maxUSDPerHour: '1.00', maxReplicas: 2}", catalogue()], True, id="limits"),
        pytest.param([SERVICE, catalogue("spot")], True, id="no on-demand"),
        pytest.param([SERVICE, CLASS.replace("NODES", existing("spot"))], True, id="no profile"),
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
    assert result.exit_code == 2
    assert result.stdout.splitlines()[:4] == [
        f"minimal: {model}, 1 requests/s, TTFT ≤ 2,000 ms and TPOT ≤ 100 ms for 99 % of requests",
        "cannot be met: 1 requests/s stay unserved",
        (
            f"  PerformanceProfile: write a PerformanceProfile, measured or estimated, of {model} on class a10g, h100, l4 or "
            "l40s: there is none"
        ),
        "no replica is planned",
    ]


@pytest.mark.parametrize("command", ["plan", "explain"])
def test_without_classes_the_remedy_is_to_give_their_file(files, command):
    result = CliRunner().invoke(main, [command, *files(SERVICE, PROFILE)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: -c: no AcceleratorClass in the files, so nothing can be bought: give a file of classes (-c FILE), "
        "such as examples/acceleratorclasses.yaml, and one of their profiles\n"
    )


def test_yaml_and_json_say_the_same(files):
    paths = files(SERVICE, catalogue())
    assert yaml.safe_load(ran(*paths, "-o", "yaml").stdout) == json.loads(ran(*paths, "-o", "json").stdout)


def test_the_table_for_people(files):
    service, catalogue_file = files(SERVICE, catalogue())[1::2]
    result = ran("-f", service, "-c", catalogue_file)
    assert result.exit_code == 0
    assert "chat: llama, 4 requests/s, TTFT ≤ 2,000 ms and TPOT ≤ 40 ms for 99 % of requests" in result.stdout
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
        pytest.param([CLASS.replace("NODES", existing("spot"))], "expected an LLMService of medley.dev/v1alpha1, found none", id="no service"),
        pytest.param([SERVICE, SERVICE], "LLMService default/chat is there more than once", id="one service twice"),
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
        pytest.param(
            [SERVICE + "  limits: {budget: team}", catalogue()],
            "spec.limits.budget: no Budget named team; there are: none",
            id="unknown budget",
        ),
    ],
)  # fmt: skip
def test_manifests_that_must_be_corrected_are_refused_with_status_2(files, documents, message):
    result = ran(*files(*documents))
    assert result.exit_code == 2
    assert message in aside(result)


BUDGET = '{apiVersion: medley.dev/v1alpha1, kind: Budget, metadata: {name: team}, spec: {maxUSDPerHour: "USD"}}'


def two_on_a_budget(usd: str) -> tuple[str, ...]:
    """Return two services of 2.10 USD/h each, of which the second comes first."""
    first = conftest.SERVICE + "  limits: {budget: team}\n"
    second = first.replace("name: chat}", "name: code, namespace: dev}") + "  priority: 5\n  mode: Plan\n"
    return first, second, BUDGET.replace('"USD"', f'"{usd}"'), catalogue()


def test_services_in_the_files_share_a_budget_by_priority(files):
    result = ran(*files(*two_on_a_budget("3")), "-o", "json")
    assert result.exit_code == 1
    chat, code = json.loads(result.stdout)
    assert (chat["service"], chat["plan"]["usdPerHour"]) == ("default/chat", "0.70")
    assert chat["plan"]["infeasible"]["remedy"] == (
        "0.90 USD/h left of Budget team (of 3.00 dev/code takes 2.10) is too little: the demand needs 2.10 USD/h; "
        "raise its maxUSDPerHour, or spend less of it"
    )
    assert (code["service"], code["plan"]["usdPerHour"]) == ("dev/code", "2.10")
    assert "infeasible" not in code["plan"]


def test_the_table_says_who_spends_a_budget(files):
    result = ran(*files(*two_on_a_budget("5")))
    assert result.exit_code == 0
    assert "Budget team: 4.20 of 5 USD/h: default/chat 2.10, dev/code 2.10" in result.stdout


def test_a_picture_is_of_one_service(files, tmp_path):
    result = ran(*files(*two_on_a_budget("5")), "--picture", str(tmp_path / "a.png"))
    assert result.exit_code == 2
    assert "--picture: is of one service, and the files have chat, code; give one of them" in aside(result)


def test_a_file_that_is_not_there(tmp_path):
    result = ran("-f", str(tmp_path / "none.yaml"))
    assert (result.exit_code, "cannot be read: No such file or directory" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([], "error: missing option '-f' / '--file'; see medley plan --help", id="no file"),
        pytest.param(["--nope"], "error: no such option: --nope; see medley plan --help", id="no such option"),
        pytest.param(
            ["-f", "BAD"], "error: BAD: is not YAML: line 2, column 2: expected ',' or ']', but got ':'", id="YAML"
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, arguments, said):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [b\nc: d: e")
    result = CliRunner().invoke(
        main, ["plan", *(each.replace("BAD", str(path)) for each in arguments)], prog_name="medley"
    )
    assert (result.exit_code, result.stderr) == (2, said.replace("BAD", str(path)) + "\n")


def test_lines_of_a_pipe_are_as_long_as_they_must_be(files):
    result = CliRunner().invoke(main, ["plan", *files(SERVICE, catalogue("spot"))], env={"COLUMNS": "80"})
    assert max(len(line) for line in result.stdout.splitlines()) > 80
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


def test_sentences_beside_the_answer_are_broken_like_a_page(files):
    long = [PROFILE.replace("llama-l4", f"llama-l4-{number:02}") for number in range(20)]
    told = ran(*files(SERVICE, CLASS.replace("NODES", existing("spot")), *long)).stderr.splitlines()
    assert told[0].startswith("note: estimates, not measurements: llama-l4-00, ")
    assert [line for line in told if len(line) > 100] == []
    assert {line[:2] for line in told[1:]} == {"  "}


@pytest.mark.parametrize(
    ("old", "new", "warned"),
    [
        pytest.param(
            "tpot: 40ms", "tpot: 2s", "spec.slo.tpot 2s is 2 s per token: is another unit meant", id="tpot in s"
        ),
        pytest.param("tpot: 40ms", "tpot: 40us", "spec.slo.tpot 40us is 40 us per token: is another", id="tpot in us"),
        pytest.param(
            'spotPerHour: "0.28"', 'spotPerHour: "2.8"', "l4 spot us-east-1a: 2.8 USD per node-hour is more", id="spot"
        ),
        pytest.param(
            'perHour: "0.70"',
            'perHour: "511"',
            "l4 on-demand us-east-1a: 511 USD for an hour of a node: are these cents",
            id="a month",
        ),
        pytest.param(
            "tpot: 30ms", "tpot: 30s", "profile llama-l4: the shortest TPOT is 30s: is another unit", id="profile"
        ),
    ],
)
def test_units_that_can_hardly_be_meant_are_asked_about(files, old, new, warned):
    documents = [each.replace(old, new) for each in (SERVICE, conftest.catalogue())]
    assert f"warning: {warned}" in aside(ran(*files(*documents)))


def test_other_kinds_of_objects_are_passed_over(files):
    other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n"
    assert ran(*files(SERVICE, other + catalogue())).exit_code == 0


def test_the_version():
    assert CliRunner().invoke(main, ["--version"]).stdout == f"medley {__version__}\n"


def test_every_command_is_listed():
    shown = CliRunner().invoke(main, ["--help"]).stdout
    assert all(command in shown for command in ("plan", "operator", "router", "engine", "demo"))


@pytest.mark.parametrize("command", ["plan", "explain", "profile measure", "profile estimate", "profile fit"])
def test_every_command_explains_itself(command):
    """Square brackets in a help text are markup, and unbalanced ones an exception."""
    done = CliRunner().invoke(main, [*command.split(), "--help"])
    assert (done.exit_code, "--" in done.stdout) == (0, True)


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
    monkeypatch.delattr(medley.cli.profile, "fitted", raising=False)
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


def test_bounds_of_service_and_class_reach_the_plan(files):
    bounded = SERVICE.replace("onDemandFloor: 20%", "surviveClassLoss: 50%") + (
        "  limits: {gpuQuotas: [{class: l4, market: spot, gpus: 4}]}\n  spread: {minZones: 2}\n"
    )
    zones = (
        "[{name: zone-a, perHour: '0.70', spotPerHour: '0.28'}, {name: zone-b, perHour: '0.70', spotPerHour: '0.28'}]"
    )
    two_zones = CLASS.replace('[{name: us-east-1a, perHour: "0.70", spotPerHour: "0.28"}]', zones)
    bought = two_zones.replace("NODES", conftest.KARPENTER)
    bought = bought.replace("  nodes:", "  gpuQuota: {spot: 1}\n  nodes:")
    result = ran(*files(bounded, bought + "---" + PROFILE), "-o", "json")
    assert result.exit_code == 0
    # One spot GPU is all that the account may hold; the other two are on demand, and not all in one zone.
    assert [(each["market"], each["replicas"]) for each in json.loads(result.stdout)["offerings"]] == [
        ("on-demand", 1),
        ("on-demand", 1),
        ("spot", 1),
    ]


def test_the_published_programme_for_comparison(files):
    asked = SERVICE + "  allocation: Melange\n  mode: Plan\n"
    result = ran(*files(asked, catalogue()), "-o", "json")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    # 4 requests/s fill two replicas of 2 requests/s; the plan of shares keeps 15 % of three in reserve.
    assert (plan["offerings"][0]["replicas"], plan["usdPerHour"]) == (2, "1.40")
    assert "set mode: Plan, or allocation: Shares" in aside(
        ran(*files(SERVICE + "  allocation: Melange\n", catalogue()))
    )


TWO_STAGES = PROFILE.replace("  source:", "  pipelineParallel: 2\n  source:")


def test_a_shape_of_several_nodes_is_on_offer_to_a_plan_alone(files):
    catalogue_of_one = CLASS.replace("NODES", existing("on-demand")) + "---" + TWO_STAGES
    result = ran(*files(SERVICE + "  mode: Plan\n", catalogue_of_one), "-o", "json")
    assert result.exit_code == 0
    # Three replicas of two nodes at 0.70 USD/h.
    plan = json.loads(result.stdout)
    assert [(each["shape"], each["replicas"], each["usdPerHour"]) for each in plan["offerings"]] == [
        ("l4-pp2", 3, "4.20")
    ]
    assert "warning: l4-pp2 needs 2 nodes; engines run on one node so far; spec.mode Auto makes another plan" in aside(
        result
    )
    refused = ran(*files(SERVICE, catalogue_of_one), "-o", "json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["infeasible"]["remedy"] == (
        "l4-pp2 needs 2 nodes; engines run on one node so far: use spec.mode Plan to see what it would cost, "
        "or a class with more GPUs per node"
    )


def test_plans_of_several_nodes_share_them(files):
    # Six nodes are what three replicas take: the service that comes second gets none.
    capped = CLASS.replace('perHour: "0.70", ', 'perHour: "0.70", maxNodes: 6, ').replace(
        "NODES", existing("on-demand")
    )
    asked = SERVICE + "  mode: Plan\n"
    first = asked.replace("name: chat", "name: first").replace("spec:", "spec:\n  priority: 1", 1)
    result = ran(*files(first, asked, capped + "---" + TWO_STAGES), "-o", "json")
    assert result.exit_code == 1
    assert [[each["replicas"] for each in one["plan"]["offerings"]] for one in json.loads(result.stdout)] == [[3], []]
