"""The chart on a real API server: it installs, upgrades and goes; its rights are enough for what they are for, and no more."""

import json
import sys
from pathlib import Path

import pytest

from e2e.stage import paths
from e2e.stage.pki import Identity
from e2e.stage.processes import StageError, run
from e2e.stage.versions import KUBERNETES_TOOL
from medley.kube import rbac
from tests.apiserver import posting
from tests.chart.conftest import CHART, Helm, by_name

pytestmark = pytest.mark.apiserver

RELEASE = Identity(
    "system:serviceaccount:medley-system:medley-release", ("system:serviceaccounts", "system:authenticated")
)
OPERATOR = Identity(
    "system:serviceaccount:medley-system:medley-operator", ("system:serviceaccounts", "system:authenticated")
)
SERVICE = {
    "apiVersion": "medley.dev/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "chat", "namespace": "default", "finalizers": ["medley.dev/cleanup"]},
    "spec": {"model": {"name": "m/x"}},
}


def as_operator(plane, *arguments, stdin=None):
    kubectl = paths.program(KUBERNETES_TOOL, "kubectl")
    return run([kubectl, "--kubeconfig", plane.kubeconfig_as(OPERATOR), *arguments], stdin=stdin)


def test_every_pod_of_the_chart_meets_pod_security_restricted(plane, installed):
    templates = by_name(installed("template", "m", str(CHART), "--namespace", "medley-system"))
    specs = {
        "operator": templates["Deployment", "medley-operator"]["spec"]["template"]["spec"],
        "release": templates["Job", "medley-release"]["spec"]["template"]["spec"],
        "test": templates["Pod", "medley-test"]["spec"],
    }
    plane.kubectl("create", "serviceaccount", "medley-release", "--namespace", "medley-system")
    for name, spec in specs.items():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "medley-system"},
            "spec": spec,
        }
        plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    plane.kubectl("delete", "serviceaccount", "medley-release", "--namespace", "medley-system")


def test_installing_again_changes_nothing(plane, installed):
    def versions():
        listed = json.loads(plane.kubectl("get", "clusterroles,crds,clusterrolebindings", "-o", "json"))["items"]
        return {
            (each["kind"], each["metadata"]["name"]): each["metadata"]["resourceVersion"]
            for each in listed
            if "medley" in each["metadata"]["name"]
        }

    before = versions()
    installed("upgrade", "m", str(CHART), "--namespace", "medley-system")
    assert versions() == before


@pytest.fixture(scope="module")
def may_operator(plane, installed):
    """Return a function that asks the API server, which also knows resources that are not installed."""
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    with posting(plane, OPERATOR) as post:

        def may(verb, resource, group, *, name="", namespace="default"):
            plural, _, subresource = resource.partition("/")
            attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource, "name": name}
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "metadata": {},
                "spec": {"resourceAttributes": {**attributes, "namespace": namespace}},
            }
            status, answer = post(path, review)
            assert status == 201, answer
            return answer["status"]["allowed"]

        yield may


@pytest.mark.parametrize(
    "rule", rbac.OPERATOR_CLUSTER_RULES, ids=lambda rule: f"{rule.group}/{','.join(rule.resources)}"
)
def test_the_operator_may_do_what_its_code_lists(may_operator, rule):
    asked = [
        (verb, each, name) for verb in rule.verbs for each in rule.resources for name in rule.resource_names or ("",)
    ]
    assert [one for one in asked if not may_operator(one[0], one[1], rule.group, name=one[2])] == []


def test_the_operator_holds_its_lease_in_its_own_namespace_alone(may_operator):
    (rule,) = rbac.OPERATOR_NAMESPACE_RULES
    for verb in rule.verbs:
        assert may_operator(verb, "leases", rule.group, namespace="medley-system")
        assert not may_operator(verb, "leases", rule.group, namespace="default")


def binding(role):
    return json.dumps(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "tried", "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "chat-router", "namespace": "default"}],
        }
    )


def test_the_operator_hands_on_the_routers_roles(plane, installed):
    for role in (rbac.ROUTER_ROLE, rbac.ROUTER_NODES_ROLE):
        as_operator(plane, "create", "--dry-run=server", "-f", "-", stdin=binding(role))


@pytest.mark.parametrize("role", ["cluster-admin", "admin", "view", "system:node"])
def test_the_operator_hands_on_no_role_with_rights_that_it_lacks(plane, installed, role):
    """The API server lists the rights that the operator would have to hold itself."""
    with pytest.raises(StageError, match=r"APIGroups:\["):
        as_operator(plane, "create", "--dry-run=server", "-f", "-", stdin=binding(role))


@pytest.mark.parametrize(
    ("verb", "resource", "group"),
    [
        pytest.param("list", "secrets", "", id="read every secret"),
        pytest.param("create", "pods/exec", "", id="exec"),
        pytest.param("delete", "nodes", "", id="delete nodes"),
        pytest.param("delete", "llmservices", "medley.dev", id="delete services"),
        pytest.param("update", "clusterroles", "rbac.authorization.k8s.io", id="change roles"),
        pytest.param("escalate", "clusterroles", "rbac.authorization.k8s.io", id="escalate"),
        pytest.param("bind", "clusterroles", "rbac.authorization.k8s.io", id="bind any role"),
        pytest.param("impersonate", "serviceaccounts", "", id="impersonate"),
        pytest.param("create", "serviceaccounts/token", "", id="mint tokens"),
    ],
)
def test_the_operator_may_not(may_operator, verb, resource, group):
    assert not may_operator(verb, resource, group)


def test_who_edits_a_namespace_edits_its_services(plane, installed):
    plane.kubectl("create", "rolebinding", "ed", "--clusterrole=edit", "--user=ed", "--namespace", "default")
    ed = plane.kubeconfig_as(Identity("ed", ("system:authenticated",)))
    kubectl = [paths.program(KUBERNETES_TOOL, "kubectl"), "--kubeconfig", ed, "auth", "can-i"]
    plane.kubectl("wait", "--for=jsonpath={.rules}", "clusterrole/edit", "--timeout=10s")
    assert run([*kubectl, "create", "llmservices.medley.dev", "--namespace", "default"]).strip() == "yes"
    assert run([*kubectl, "list", "acceleratorclasses.medley.dev"]).strip() == "yes"
    with pytest.raises(StageError):
        run([*kubectl, "create", "acceleratorclasses.medley.dev"])
    with pytest.raises(StageError):
        run([*kubectl, "create", "llmservices.medley.dev", "--namespace", "kube-system"])


def test_uninstalled_and_installed_again_the_services_are_still_there(plane, tmp_path, installed):
    """Without the hooks, since nothing runs the release job here; the stage runs it."""
    plane.kubectl("create", "-f", "-", stdin=json.dumps(SERVICE))
    helm = Helm(tmp_path, plane.kubeconfig)
    helm.plain("uninstall", "m", "--namespace", "medley-system", "--no-hooks")
    left = plane.kubectl("get", "clusterroles,crds", "-o", "name").split()
    assert sorted(each.partition("/")[2] for each in left if "medley" in each) == [
        "acceleratorclasses.medley.dev",
        "budgets.medley.dev",
        "llmservices.medley.dev",
        "medley-router",
        "medley-router-nodes",
        "migrations.medley.dev",
        "performanceprofiles.medley.dev",
    ]
    assert plane.kubectl("get", "llmservice", "chat", "-o", "jsonpath={.spec.model.name}") == "m/x"
    helm("install", "m", str(CHART), "--namespace", "medley-system")
    assert plane.kubectl("get", "llmservice", "chat", "-o", "jsonpath={.spec.model.name}") == "m/x"


def test_after_the_release_job_deleting_services_does_not_hang(plane, installed):
    """The job's command, with the job's account and role; nothing but the finalizer changes."""
    templates = by_name(installed("template", "m", str(CHART), "--namespace", "medley-system"))
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(templates[kind, "medley-release"]))
    for name in ("first", "second"):
        theirs = {
            **SERVICE,
            "metadata": {
                **SERVICE["metadata"],
                "name": name,
                "finalizers": ["medley.dev/cleanup", "example.org/theirs"],
            },
        }
        plane.kubectl("create", "-f", "-", stdin=json.dumps(theirs))
    command = templates["Job", "medley-release"]["spec"]["template"]["spec"]["containers"][0]["command"]
    medley = Path(sys.executable).with_name(command[0])
    run([medley, *command[1:]], env={"KUBECONFIG": str(plane.kubeconfig_as(RELEASE))})
    for name in ("first", "second"):
        live = json.loads(plane.kubectl("get", "llmservice", name, "-o", "json"))
        assert live["metadata"]["finalizers"] == ["example.org/theirs"]
        assert live["spec"]["model"]["name"] == "m/x"
        plane.kubectl("patch", "llmservice", name, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
        plane.kubectl("delete", "llmservice", name, "--timeout=10s")
    for kind in ("clusterrole", "clusterrolebinding"):
        plane.kubectl("delete", kind, "medley-release")
