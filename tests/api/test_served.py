"""What the API server makes of the objects: defaults, columns, explanations, changes that it refuses."""

import json

import pytest
import yaml

from e2e.stage.processes import StageError
from medley.api.convert import read_llm_service
from medley.api.crd import RESOURCES
from tests.api.test_bad_input import GOOD, manifest

pytestmark = pytest.mark.apiserver


@pytest.fixture
def service(plane):
    """A minimal LLMService on the API server, gone afterwards."""
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(GOOD["LLMService"]))
    yield "llmservice/chat"
    plane.kubectl("delete", "llmservice", "chat")


def live(plane, name):
    return json.loads(plane.kubectl("get", name, "-o", "json"))


def set_status(plane, status):
    patch = json.dumps({"status": status})
    plane.kubectl("patch", "llmservice", "chat", "--subresource=status", "--type=merge", "-p", patch)


def test_only_the_model_is_required_and_the_rest_is_written_down(plane, service):
    assert live(plane, service)["spec"] == {
        "model": {"name": "meta-llama/Llama-2-7b-hf", "source": {"hub": {}}},
        "slo": {"percentile": 99, "ttft": "2s", "tpot": "100ms"},
        "workload": {
            "requestsPerSecond": 1,
            "distribution": {"preset": "chat"},
            "source": "Observed",
            "routing": "Blind",
        },
        "spot": {"policy": "Prefer"},
        "limits": {"maxReplicas": 20, "minReplicas": 1},
        "spread": {"minZones": 1, "maxZoneShare": "100%"},
        "allocation": "Shares",
        "migration": {"mode": "Auto"},
        "mode": "Auto",
        "priority": 0,
        "router": {"replicas": 2, "requestTimeout": "10m", "queueLimit": 1024},
    }


def test_the_models_and_the_api_server_fill_in_the_same_defaults(plane, service):
    assert read_llm_service(live(plane, service)).spec == read_llm_service(GOOD["LLMService"]).spec


def test_defaults_reach_into_objects_that_are_written_in_part(plane):
    document = manifest("LLMService", {"metadata.name": "partly", "spec.slo": {"tpot": "40ms"}, "spec.router": {}})
    created = yaml.safe_load(
        plane.kubectl("create", "--dry-run=server", "-o", "yaml", "-f", "-", stdin=json.dumps(document))
    )
    assert created["spec"]["slo"] == {"percentile": 99, "tpot": "40ms"}
    assert created["spec"]["router"] == {"replicas": 2, "requestTimeout": "10m", "queueLimit": 1024}


def test_kubectl_shows_what_is_served_and_what_it_costs(plane, service):
    condition = {"type": "Ready", "status": "True", "reason": "Serving", "lastTransitionTime": "2026-05-01T12:00:00Z"}
    set_status(
        plane,
        {
            "conditions": [condition],
            "replicas": {"desired": 4, "ready": 3, "spot": 2, "summary": "3/4"},
            "plan": {"usdPerHour": "1.52", "onDemandUSDPerHour": "4.03", "savedPercent": "62%"},
        },
    )
    header, row = plane.kubectl("get", "llm", "chat").splitlines()
    assert header.split() == ["NAME", "READY", "REPLICAS", "$/H", "ON-DEMAND", "$/H", "SAVED", "SPOT", "AGE"]
    assert row.split()[:-1] == ["chat", "True", "3/4", "1.52", "4.03", "62%", "2"]


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.short)
def test_every_column_has_its_header(plane, resource):
    kind = resource.model.__name__
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest(kind, {"metadata.name": "shown"})))
    header = plane.kubectl("get", resource.short, "shown").splitlines()[0]
    plane.kubectl("delete", resource.short, "shown")
    assert header.split() == ["NAME", *" ".join(name.upper() for name, _, _ in resource.columns).split()]


def test_the_category_lists_services(plane, service):
    assert service in plane.kubectl("get", "medley", "-o", "name").replace(".medley.dev", "")


def test_explain_gives_units(plane):
    assert 'Spot price of one node, in USD per hour, as a string: "0.32".' in " ".join(
        plane.kubectl("explain", "acc.spec.zones.spotPerHour").split()
    )


def test_status_is_a_subresource_of_its_own(plane, service):
    document = live(plane, service)
    document["status"] = {"url": "http://elsewhere"}
    plane.kubectl("replace", "-f", "-", stdin=json.dumps(document))
    assert "status" not in live(plane, service)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"name": "another/model"}, "spec.model.name", id="name"),
        pytest.param({"source": {"hub": {"revision": "v2"}}}, "spec.model.source", id="revision"),
        pytest.param({"source": {"hub": None, "pvc": {"claimName": "models"}}}, "spec.model.source", id="source"),
    ],
)
def test_weights_cannot_change_under_running_streams_but_can_before(plane, service, change, field):
    patch = json.dumps({"spec": {"model": change}})
    set_status(plane, {"replicas": {"desired": 1, "ready": 1}})
    with pytest.raises(StageError, match="cannot change while replicas serve: running streams would go on with other"):
        plane.kubectl("patch", "llmservice", "chat", "--type=merge", "-p", patch)
    set_status(plane, {"replicas": {"desired": 1, "ready": 0}})
    plane.kubectl("patch", "llmservice", "chat", "--type=merge", "-p", patch)


def test_other_fields_change_while_replicas_serve(plane, service):
    set_status(plane, {"replicas": {"desired": 1, "ready": 1}})
    patch = json.dumps(
        {"spec": {"model": {"maxModelLen": 2048, "source": {"hub": {"tokenSecretRef": {"name": "t", "key": "k"}}}}}}
    )
    plane.kubectl("patch", "llmservice", "chat", "--type=merge", "-p", patch)
    assert live(plane, service)["spec"]["model"]["maxModelLen"] == 2048


def test_a_migration_does_not_change(plane):
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(GOOD["Migration"]))
    with pytest.raises(StageError, match="a Migration records one notice and does not change"):
        plane.kubectl("patch", "migration", "chat-node-1", "--type=merge", "-p", '{"spec": {"cause": "Voluntary"}}')
    plane.kubectl("delete", "migration", "chat-node-1")


def test_status_lists_merge_by_condition_type(plane, service):
    """Two appliers own a condition each; neither removes the other's."""
    for kind in ("Ready", "PlanFeasible"):
        condition = {
            "type": kind,
            "status": "True",
            "reason": "R",
            "message": "",
            "lastTransitionTime": "2026-05-01T12:00:00Z",
        }
        document = {
            **{key: GOOD["LLMService"][key] for key in ("apiVersion", "kind", "metadata")},
            "status": {"conditions": [condition]},
        }
        plane.kubectl(
            "apply",
            "--server-side",
            "--subresource=status",
            f"--field-manager={kind.lower()}",
            "-f",
            "-",
            stdin=json.dumps(document),
        )
    assert [each["type"] for each in live(plane, service)["status"]["conditions"]] == ["Ready", "PlanFeasible"]
