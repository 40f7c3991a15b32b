"""`medley plan --diff`: against an API server that only answers GET, replica by replica."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.testing import CliRunner

from medley.cli import main
from medley.core import names
from tests.cli.conftest import aside

SERVICES = "/apis/medley.dev/v1alpha1/namespaces/default/llmservices/chat"
CLASSES = "/apis/medley.dev/v1alpha1/acceleratorclasses"
PROFILES = "/apis/medley.dev/v1alpha1/performanceprofiles"
PODS = "/api/v1/namespaces/default/pods"
BUDGETS = "/apis/medley.dev/v1alpha1/budgets"
ALL_SERVICES, ALL_PODS = "/apis/medley.dev/v1alpha1/llmservices", "/api/v1/pods"


@contextmanager
def cluster(tmp_path: Path, objects: dict[str, Any]) -> Iterator[str]:
    """Serve objects by path; yield its kubeconfig. A number is the status of a refusal; other methods than GET are refused."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            found = objects.get(urlsplit(self.path).path, 404)
            body = {"message": "no", "code": found} if isinstance(found, int) else found
            if isinstance(found, list):
                body = {"items": found, "metadata": {"resourceVersion": "1"}}
            data = json.dumps(body).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    config = tmp_path / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "users": [{"name": "me", "user": {"token": "t"}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            }
        )
    )
    try:
        yield str(config)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pod(name: str, market: str, zone: str = "us-east-1a", shape: str = "l4") -> dict[str, Any]:
    labels = {
        names.LABEL_SERVICE: "chat",
        names.LABEL_COMPONENT: "engine",
        names.LABEL_SHAPE: shape,
        names.LABEL_MARKET: market,
        names.LABEL_ZONE: zone,
        names.LABEL_TEMPLATE_HASH: "x",
    }
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": name,
            "labels": labels,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": f"node-of-{name}"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def planned(*offerings: tuple[str, int, str]) -> dict[str, Any]:
    """Return a status with a plan in force: (market, replicas, USD per hour)."""
    return {
        "plan": {
            "offerings": [
                {"shape": "l4", "market": market, "zone": "us-east-1a", "replicas": count, "usdPerHour": usd}
                for market, count, usd in offerings
            ]
        }
    }


@pytest.fixture
def objects(manifests) -> dict[str, Any]:
    """Return what the cluster has: the same class and profile, one on-demand and one spot replica."""
    service, accelerator_class, profile = yaml.safe_load_all(Path(manifests).read_text())
    service["metadata"] |= {"namespace": "default", "uid": "u", "generation": 1}
    service["status"] = planned(("on-demand", 1, "0.60"), ("spot", 1, "0.25"))
    return {
        SERVICES: service,
        CLASSES: [accelerator_class],
        PROFILES: [profile],
        PODS: [pod("chat-l4-d-us-east-1a-0", "on-demand"), pod("chat-l4-s-us-east-1a-0", "spot")],
    }


def ran(kubeconfig: str, *arguments: str):
    options = ["--diff", "--kubeconfig", kubeconfig]
    return CliRunner().invoke(main, ["plan", *options, *arguments], env={"COLUMNS": "200"})


def changes(kubeconfig: str, *arguments: str):
    result = ran(kubeconfig, *arguments, "-o", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_what_stays_what_is_launched_and_what_goes(manifests, tmp_path, objects):
    with cluster(tmp_path, objects) as kubeconfig:
        found = changes(kubeconfig, "-f", manifests)
    lines = [
        (each["change"], each["name"], each["usdPerHourBefore"], each["usdPerHourAfter"]) for each in found["replicas"]
    ]
    # Three spot l4 are wanted; one is there, at what the status says it cost.
    assert lines == [
        ("stays", "chat-l4-s-us-east-1a-0", 0.25, 0.28),
        ("launched", "chat-l4-s-us-east-1a-1", None, 0.28),
        ("launched", "chat-l4-s-us-east-1a-2", None, 0.28),
        ("removed", "chat-l4-d-us-east-1a-0", 0.60, None),
    ]
    assert (found["usdPerHourBefore"], found["usdPerHourAfter"], found["met"]) == (0.85, 0.84, True)


@pytest.fixture
def paid(manifests, tmp_path, objects):
    """Return a manifest of 0.84 USD/h on a Budget of 1.40, beside a service that holds two on-demand l4 (1.40)."""
    document = Path(manifests).read_text().replace("maxReplicas: 10", "maxReplicas: 10, budget: team")
    written = tmp_path / "paid.yaml"
    written.write_text(document)
    service, *_ = yaml.safe_load_all(document)
    held = [pod(f"batch-l4-d-us-east-1a-{n}", "on-demand") for n in range(2)]
    for each in held:
        each["metadata"] |= {"namespace": "dev", "labels": each["metadata"]["labels"] | {names.LABEL_SERVICE: "batch"}}
    other = {**service, "metadata": {"name": "batch", "namespace": "dev", "uid": "v", "generation": 1}}
    other["spec"] = {**other["spec"], "mode": "Plan"}
    objects[BUDGETS] = [{"metadata": {"name": "team"}, "spec": {"maxUSDPerHour": "1.40"}}]
    objects[ALL_SERVICES], objects[ALL_PODS] = [objects[SERVICES], other], [*objects[PODS], *held]
    return str(written)


def test_what_others_take_of_a_budget_is_left_out_of_it(paid, tmp_path, objects):
    with cluster(tmp_path, objects) as kubeconfig:
        result = ran(kubeconfig, "-f", paid)
    assert result.exit_code == 1
    assert "0.00 USD/h left of Budget team (of 1.40 dev/batch takes 1.40) is too little" in result.stdout


def test_others_that_may_not_be_read_are_said_to_be_unknown(paid, tmp_path, objects):
    with cluster(tmp_path, objects | {ALL_PODS: 403}) as kubeconfig:
        result = ran(kubeconfig, "-f", paid)
    assert result.exit_code == 0
    assert "what other services take of nodes and Budgets is not known, so this is planned as if alone" in aside(result)


def test_what_routers_measured_is_planned_for_as_the_operator_does(manifests, tmp_path, objects):
    grid = objects[SERVICES]["spec"]["workload"]["distribution"]["histogram"]
    objects[SERVICES]["status"]["workload"] = {
        "requestsPerSecond": "1.5",
        "requests": 900,
        "inputEdges": grid["inputEdges"],
        "outputEdges": grid["outputEdges"],
        "classes": [{"input": 0, "output": 0, "requestsPerSecond": "1.5", "made": [1000]}],
        "bursts": [],
        "measuredAt": "2026-01-01T00:00:00Z",
    }
    with cluster(tmp_path, objects) as kubeconfig:
        result = ran(kubeconfig, "-f", manifests, "-o", "json")
    # One replica carries 1.7 requests/s of 2.
    assert [each["change"] for each in json.loads(result.stdout)["replicas"]] == ["stays", "removed"]
    told = "planned for 1.5 requests/s by what routers measured, as in status.workload; a --trace takes its place"
    assert told in aside(result)


def test_the_table_for_people(manifests, tmp_path, objects):
    with cluster(tmp_path, objects) as kubeconfig:
        shown = ran(kubeconfig, "-f", manifests).stdout
    assert "default/chat: 2 launched, 1 removed, 1 stay" in shown
    assert "0.85 -> 0.84 USD/h (-0.01)" in shown


def test_a_plan_that_is_carried_out_changes_nothing(manifests, tmp_path, objects):
    objects[SERVICES]["status"] = planned(("spot", 3, "0.84"))
    objects[PODS] = [pod(f"chat-l4-s-us-east-1a-{number}", "spot") for number in range(3)]
    with cluster(tmp_path, objects) as kubeconfig:
        assert {each["change"] for each in changes(kubeconfig, "-f", manifests)["replicas"]} == {"stays"}
        assert "no replica would change" in ran(kubeconfig, "-f", manifests).stdout


def test_a_service_that_is_not_there_would_be_new(manifests, tmp_path, objects):
    del objects[SERVICES]
    objects[PODS] = []
    with cluster(tmp_path, objects) as kubeconfig:
        result = ran(kubeconfig, "-f", manifests)
    assert "default/chat is not in the cluster: all of it would be new" in result.stdout
    assert "0.00 -> 0.84 USD/h (+0.84)" in result.stdout


def test_the_clusters_catalogue_stands_in_for_one_that_no_file_has(manifests, tmp_path, objects):
    alone = tmp_path / "service.yaml"
    alone.write_text(Path(manifests).read_text().split("---")[0])
    objects[CLASSES][0]["spec"]["zones"][0]["spotPerHour"] = "0.10"
    broken = {"apiVersion": "medley.dev/v1alpha1", "kind": "AcceleratorClass", "metadata": {"name": "odd"}, "spec": {}}
    objects[CLASSES].append(broken)
    with cluster(tmp_path, objects) as kubeconfig:
        result = ran(kubeconfig, "-f", str(alone))
    assert "0.30 USD/h" in result.stdout
    assert "warning: AcceleratorClass odd is left out: " in aside(result)


def test_a_replica_without_a_price_makes_no_sum(manifests, tmp_path, objects):
    objects[PODS].append(pod("chat-h100-s-us-east-1a-0", "spot", shape="h100"))
    with cluster(tmp_path, objects) as kubeconfig:
        assert "is not known: a replica is of an offering without a price" in ran(kubeconfig, "-f", manifests).stdout


def test_no_cluster(manifests, tmp_path):
    result = ran(str(tmp_path / "none"), "-f", manifests)
    assert (result.exit_code, "error: " in result.stderr) == (2, True)


def test_a_picture_is_of_one_plan(manifests):
    result = ran("none", "-f", manifests, "--picture", "x.png")
    assert result.exit_code == 2
