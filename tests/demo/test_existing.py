"""The demo in somebody's cluster: what it touches, and what it leaves, on a real API server."""

import re
import tempfile
from pathlib import Path

import pytest
import yaml

from e2e.demo import existing, manifests
from e2e.demo.cluster import Cluster
from e2e.demo.existing import MARK, SYSTEM, Existing
from e2e.demo.place import PlaceError
from e2e.demo.taking import TAINT, Taking
from e2e.stage import paths
from e2e.stage.apiserver import ControlPlane
from e2e.stage.build import build
from e2e.stage.progress import Board
from e2e.stage.versions import HELM_TOOL, KUBERNETES_TOOL

pytestmark = pytest.mark.apiserver

ROOT = Path(__file__).parents[2]
NODE_CLAIM_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "nodeclaims.karpenter.sh"},
    "spec": {
        "group": "karpenter.sh",
        "scope": "Cluster",
        "names": {"kind": "NodeClaim", "plural": "nodeclaims"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def operator_deployment():
    labels = {"app.kubernetes.io/name": "medley", "app.kubernetes.io/component": "operator"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "operator", "image": "none:1"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "medley-operator", "namespace": "default", "labels": labels},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod},
    }


@pytest.fixture(scope="module")
def plane():
    with ControlPlane(controller_manager=True) as control_plane:
        control_plane.apply(ROOT / "crds")
        control_plane.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([NODE_CLAIM_CRD, operator_deployment()]))
        control_plane.kubectl("wait", "--for=condition=Established", "crd", "nodeclaims.karpenter.sh", "--timeout=30s")
        yield control_plane


@pytest.fixture
def environment(plane, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a run that "was killed" leaves its kubeconfig
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(paths.program(KUBERNETES_TOOL, "kubectl"))
    (programs / "helm").write_text("#!/bin/sh\nexit 1\n")
    (programs / "helm").chmod(0o755)
    wanted = [
        manifests.accelerator_class("l4"),
        manifests.accelerator_class("h100"),
        manifests.profile("l4"),
        manifests.service("chat", "team", "none:1"),
    ]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump_all(wanted))
    return {
        "KUBECONFIG": str(plane.kubeconfig),
        "PATH": str(programs),
        "DEMO_MANIFEST": str(tmp_path / "own.yaml"),
        "CONFIRM": plane.kubectl("config", "current-context").strip(),
    }


@pytest.fixture
def cluster(plane):
    return Cluster(plane.kubeconfig, paths.program(KUBERNETES_TOOL, "kubectl"), Path("/bin/false"))


def wants(environment, *things):
    Path(environment["DEMO_MANIFEST"]).write_text(yaml.safe_dump_all(things))


def everything(plane):
    """What a demo could leave behind or break, with the version of each object."""
    kinds = "namespaces,crd,acceleratorclasses,performanceprofiles,llmservices,secrets,nodes,nodeclaims"
    rows = "{range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{'\\n'}{end}".replace("'", '"')
    return sorted(plane.kubectl("get", kinds, "-A", "-o", f"jsonpath={rows}").splitlines())


@pytest.fixture
def real_helm(environment):
    """Helm, but for waiting for pods: no node runs them here."""
    build((HELM_TOOL,), Board())
    script = (
        '#!/bin/sh\nfor each; do shift; [ "$each" = --wait ] || set -- "$@" "$each"; done\n'
        'case "$*" in *uninstall*) set -- "$@" --no-hooks;; esac\n'
        f'exec {paths.program(HELM_TOOL, "helm")} "$@"\n'
    )
    (Path(environment["PATH"]) / "helm").write_text(script)
    return environment | {"IMAGE_REGISTRY": "registry.example", "IMAGE_TAG": "1"}


async def test_medley_that_came_with_the_demo_goes_with_it(plane, real_helm):
    """The chart's real objects; that its pods run is for the stage to show."""
    kinds = "clusterroles,clusterrolebindings"
    crds = plane.kubectl("get", "crd", "-o", "name").split()
    plane.kubectl("delete", "deployment", "medley-operator")
    plane.kubectl("delete", *(each for each in crds if each.endswith("medley.dev")))
    before, roles = everything_but_ours(plane), names(plane, kinds)
    place = await Existing.open(real_helm, print)
    await place.install()
    deployed = yaml.safe_load(plane.kubectl("get", "deployment", "medley-operator", "-n", SYSTEM, "-o", "json"))
    assert deployed["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/medley-operator:1"
    await place.apply()
    assert names(plane, "llmservices") == ["chat"]
    again = await Existing.open(real_helm, print)  # as if the first run had been killed here
    await again.install()
    await again.apply()
    await again.take_down()
    assert everything_but_ours(plane) == before
    assert names(plane, kinds) == roles
    place.cluster.kubeconfig.unlink()
    plane.apply(ROOT / "crds")
    plane.kubectl("create", "-f", "-", stdin=yaml.safe_dump(operator_deployment()))


def everything_but_ours(plane):
    kinds = "namespaces,crd,secrets,nodes,nodeclaims"
    return sorted(plane.kubectl("get", kinds, "-A", "-o", "name").split())


def names(plane, kind):
    return plane.kubectl("get", kind, "-A", "-o", "jsonpath={.items[*].metadata.name}").split()


async def test_nothing_is_done_before_the_context_is_confirmed(plane, environment):
    before, said = everything(plane), []
    context = environment.pop("CONFIRM")
    with pytest.raises(PlaceError, match=f"CONFIRM={context}$"):
        await Existing.open(environment, said.append)
    assert everything(plane) == before
    assert said[0] == f"In the cluster of context {context} ({plane.server}) the demo is going to"
    assert said[1] == "  · use medley as it runs in default and leave it"
    assert "LLMService chat" in said[2]


async def test_what_was_there_stays_as_it_was_and_what_came_goes(plane, environment):
    h100 = yaml.safe_dump(manifests.accelerator_class("h100"))
    plane.kubectl("apply", "-f", "-", stdin=h100)
    before, said = everything(plane), []
    place = await Existing.open(environment, said.append)
    await place.prepare()
    await place.install()
    await place.apply()
    assert names(plane, "llmservices") == ["chat"]
    assert sorted(names(plane, "acceleratorclasses")) == ["h100", "l4"]
    assert "AcceleratorClass h100 is there already and stays as it is" in said
    await place.take_down()
    assert everything(plane) == before
    assert not place.cluster.kubeconfig.exists()
    plane.kubectl("delete", "-f", "-", stdin=h100)


async def test_the_next_run_removes_what_a_killed_one_left(plane, environment):
    plane.kubectl("create", "namespace", "team")  # theirs: it stays
    before = everything(plane)
    killed = await Existing.open(environment, print)
    await killed.apply()
    place = await Existing.open(environment, print)
    await place.apply()
    await place.take_down()
    assert everything(plane) == before


async def test_a_service_in_use_is_refused(plane, environment):
    theirs = yaml.safe_dump(manifests.service("chat", "default", "none:1"))
    plane.kubectl("apply", "-f", "-", stdin=theirs)
    wants(environment, manifests.accelerator_class("l4"), manifests.profile("l4"), yaml.safe_load(theirs))
    with pytest.raises(PlaceError, match="LLMService default/chat is there already"):
        await Existing.open(environment, print)
    plane.kubectl("delete", "-f", "-", stdin=theirs)


async def test_a_catalogue_that_is_nowhere_is_asked_for(environment):
    wants(environment, manifests.service("chat", "default", "none:1"))
    with pytest.raises(PlaceError, match="no AcceleratorClass in it, and none in the cluster"):
        await Existing.open(environment, print)


async def test_without_medley_in_the_cluster_its_images_are_asked_for(plane, environment):
    plane.kubectl("delete", "deployment", "medley-operator")
    try:
        with pytest.raises(PlaceError, match="set IMAGE_REGISTRY and IMAGE_TAG"):
            await Existing.open(environment, print)
    finally:
        plane.kubectl("create", "-f", "-", stdin=yaml.safe_dump(operator_deployment()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PATH": "/nowhere"}, "kubectl is not on PATH"),
        ({"KUBECONFIG": "/nowhere"}, "KUBECONFIG: /nowhere: error: current-context is not set"),
        ({"DEMO_MANIFEST": ""}, "DEMO_MANIFEST is not set"),
        ({"DEMO_MANIFEST": "/nowhere"}, "DEMO_MANIFEST=/nowhere: No such file"),
        ({"CONFIRM": "another"}, "nothing was done yet"),
    ],
)
async def test_what_is_missing_is_named(environment, change, said):
    with pytest.raises(PlaceError, match=re.escape(said)):
        await Existing.open(environment | change, print)


def node(name, *taints):
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"taints": list(taints)}}


def engine_pod(**spec):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "engine", "namespace": "default"},
        "spec": {"nodeName": "plain", "containers": [{"name": "engine", "image": "none:1"}], **spec},
    }


def taints(plane, name):
    found = yaml.safe_load(plane.kubectl("get", "node", name, "-o", "json"))
    return [(t["key"], t.get("value")) for t in found["spec"].get("taints", []) if not t["key"].startswith("node.k")]


async def test_a_node_without_claim_is_tainted_and_gets_its_taint_off_again(plane, cluster):
    theirs = {"key": TAINT, "effect": "NoSchedule"}
    plane.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([node("plain"), node("leaving", theirs)]))
    taking = Taking(cluster, "default")
    await taking.begin({"metadata": {"name": "engine"}, "spec": {"nodeName": "plain"}}, 3600)
    assert taints(plane, "plain") == [(TAINT, "medley-demo")]
    await taking.undo()
    assert taints(plane, "plain") == []
    assert taints(plane, "leaving") == [(TAINT, None)]
    plane.kubectl("delete", "node", "plain", "leaving")


async def test_a_node_of_karpenters_loses_its_claim(plane, cluster):
    claim = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": "c"},
        "status": {"nodeName": "k"},
    }
    plane.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([node("k"), claim]))
    taking = Taking(cluster, "default")
    await taking.begin({"metadata": {"name": "engine"}, "spec": {"nodeName": "k"}}, 0.1)
    await taking.settled()
    assert names(plane, "nodeclaims") == []
    assert taints(plane, "k") == []
    assert taking.remarks == [
        "Notice: NodeClaim c deleted; Karpenter tainted and drained k.",
        "engine had left before its notice ended.",
    ]
    plane.kubectl("delete", "node", "k")


async def test_an_engine_whose_processes_cannot_be_reached_loses_its_pod_and_it_is_said(plane, cluster):
    pod = engine_pod()
    plane.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([node("plain"), pod]))
    taking = Taking(cluster, "default")
    await taking.begin(pod, 0)
    assert names(plane, "pods") == []
    assert [bool(re.match("The processes of engine could not be killed", each)) for each in taking.remarks] == [True]
    plane.kubectl("delete", "node", "plain")


async def test_where_processes_are_not_the_engines_alone_none_is_killed(plane, cluster):
    pod = engine_pod(hostPID=True)
    plane.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([node("plain"), pod]))
    taking = Taking(cluster, "default")
    await taking.begin(pod, 0)
    assert names(plane, "pods") == []
    said = "engine shares its processes' namespace, so none was killed; only its pod was deleted."
    assert taking.remarks == [said]
    plane.kubectl("delete", "node", "plain")


async def test_one_engine_is_too_few_to_take_one_away(environment):
    place = await Existing.open(environment, print)
    with pytest.raises(PlaceError, match=r"team/chat has 0 Ready engine\(s\), and one is to be taken away"):
        await place.entrance()
    await place.take_down()


def test_marks_are_labels_beside_those_of_the_manifest():
    thing = {"kind": "Secret", "metadata": {"name": "a", "labels": {"team": "b"}}}
    assert existing._marked(thing)["metadata"]["labels"] == {"team": "b", MARK: "true"}
    assert thing["metadata"]["labels"] == {"team": "b"}
