import json

import pytest

from e2e.stage.apiserver import ControlPlane, free_ports
from e2e.stage.pki import Identity
from e2e.stage.processes import StageError

pytestmark = pytest.mark.apiserver


def test_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_pods_can_be_created_and_an_unknown_user_may_do_nothing() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    with ControlPlane() as plane:
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
        names = plane.kubectl("get", "pods", "-A", "-o", "name")
        stranger = plane.kubeconfig_as(Identity("system:serviceaccount:medley:stranger"))
        with pytest.raises(StageError, match="Forbidden"):
            plane.kubectl("--kubeconfig", str(stranger), "get", "pods")
    assert names == "pod/p\n"
    assert not plane.folder.exists()


def test_with_the_controller_manager_garbage_is_collected() -> None:
    with ControlPlane(controller_manager=True) as plane:
        plane.kubectl("create", "configmap", "owner")
        uid = plane.kubectl("get", "configmap", "owner", "-o", "jsonpath={.metadata.uid}")
        owned = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": "owned",
                "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}],
            },
        }
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(owned))
        plane.kubectl("delete", "configmap", "owner", "--cascade=background")
        plane.kubectl("wait", "--for=delete", "configmap/owned", "--timeout=30s")
