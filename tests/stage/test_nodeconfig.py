import json
import tomllib
from pathlib import Path

from e2e.stage import nodeconfig
from e2e.stage.addresses import Slot

FOLDER = Path("/somewhere/nodes/7")


def paths_in(text: str) -> set[str]:
    return {word.strip("\"',[]") for word in text.replace("unix://", "").split() if "/somewhere" in word}


def test_every_path_of_a_machine_is_its_own() -> None:
    kubelet = nodeconfig.kubelet(FOLDER, FOLDER / "ca.crt", "medley-stage/nodes/x")
    for text in (nodeconfig.containerd(FOLDER, "pause"), nodeconfig.cni(FOLDER, Slot(7)), kubelet):
        assert paths_in(text)
        assert all(path.startswith(str(FOLDER)) for path in paths_in(text))


def test_containerd_keeps_the_pods_namespaces_with_the_machine() -> None:
    told = tomllib.loads(nodeconfig.containerd(FOLDER, "registry/pause:1"))
    runtime = told["plugins"]["io.containerd.cri.v1.runtime"]
    assert runtime["netns_mounts_under_state_dir"] is True
    assert told["plugins"]["io.containerd.cri.v1.images"]["pinned_images"] == {"sandbox": "registry/pause:1"}


def test_pods_get_addresses_of_their_machine_and_are_not_masqueraded() -> None:
    bridge, _ = json.loads(nodeconfig.cni(FOLDER, Slot(7)))["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.88.7.0/24"}]]
    assert bridge["ipMasq"] is False


def test_the_registry_is_found_behind_its_name() -> None:
    name, hosts = nodeconfig.registry_hosts()
    assert name == "registry.stage:5000"
    assert tomllib.loads(hosts)["host"]["http://10.77.0.1:5000"] == {"capabilities": ["pull", "resolve"]}
