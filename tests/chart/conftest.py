"""Helm as the stage builds it, and one rendering of the chart with the values that it needs."""

import os
from pathlib import Path

import pytest
import yaml

from e2e.stage import paths
from e2e.stage.apiserver import ControlPlane
from e2e.stage.build import build
from e2e.stage.processes import run
from e2e.stage.progress import Board
from e2e.stage.versions import HELM_TOOL

CHART = Path(__file__).parents[2] / "charts" / "medley"
IMAGES = {
    "images.operator": "r.example/operator:1",
    "images.router": "r.example/router:1",
    "images.engineInit": "r.example/engine:1",
}


class Helm:
    """`helm` with a home of its own; `kubeconfig` where a command needs a cluster."""

    def __init__(self, home, kubeconfig=None):
        self._env = {
            "HELM_CACHE_HOME": str(home / "cache"),
            "HELM_CONFIG_HOME": str(home / "config"),
            "HELM_DATA_HOME": str(home / "data"),
            "KUBECONFIG": str(kubeconfig or os.devnull),
        }

    def __call__(self, *arguments, **values):
        settings = (f"--set={key}={value}" for key, value in {**IMAGES, **values}.items())
        return self.plain(*arguments, *settings)

    def plain(self, *arguments):
        """Run without any value."""
        return run([paths.program(HELM_TOOL, "helm"), *arguments], env=self._env)


@pytest.fixture(scope="session", autouse=True)
def _helm_is_built():
    build((HELM_TOOL,), Board())


@pytest.fixture
def helm(tmp_path):
    return Helm(tmp_path)


@pytest.fixture
def rendered(helm):
    """Return a function: values -> manifests by (kind, name)."""

    def render(**values):
        return by_name(helm("template", "m", str(CHART), "--namespace", "medley-system", **values))

    return render


def by_name(text):
    documents = [document for document in yaml.safe_load_all(text) if document]
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(found) == len(documents), "two manifests of one kind and name"
    return found


@pytest.fixture(scope="package")
def plane():
    with ControlPlane(controller_manager=True) as control_plane:
        control_plane.kubectl("create", "namespace", "medley-system")
        control_plane.kubectl("label", "namespace", "medley-system", "pod-security.kubernetes.io/enforce=restricted")
        waiting = ("--for=create", "serviceaccount/default", "--namespace", "medley-system", "--timeout=30s")
        control_plane.kubectl("wait", *waiting)
        yield control_plane


@pytest.fixture(scope="package")
def installed(plane, tmp_path_factory):
    """The chart, installed; Helm does not wait, since nothing runs pods here."""
    helm = Helm(tmp_path_factory.mktemp("helm"), plane.kubeconfig)
    helm("install", "m", str(CHART), "--namespace", "medley-system")
    return helm
