"""The examples are valid, at both borders, and lead to a plan."""

import shlex
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medley.api.convert import read_accelerator_class, read_budget, read_llm_service, read_performance_profile
from medley.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
READ = {
    "LLMService": read_llm_service,
    "AcceleratorClass": read_accelerator_class,
    "PerformanceProfile": read_performance_profile,
    "Budget": read_budget,
}
FILES = sorted(EXAMPLES.glob("*.yaml"))
ESTIMATED = sorted(EXAMPLES.glob("performanceprofile*.yaml"))


def documents(path):
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


SERVICES = [path for path in FILES if any(each["kind"] == "LLMService" for each in documents(path))]


def every(kind):
    return [document for path in FILES for document in documents(path) if document["kind"] == kind]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_valid(path):
    for document in documents(path):
        assert READ[document["kind"]](document).metadata.name == document["metadata"]["name"]


@pytest.mark.apiserver
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_api_server_takes_an_example_strictly(plane, path):
    plane.kubectl("create", "--validate=strict", "--dry-run=server", "-f", str(path))


def test_the_full_example_shows_every_field():
    shown = documents(EXAMPLES / "llmservice-full.yaml")[0]["spec"]
    everything = read_llm_service({"metadata": {"name": "a"}, "spec": {"model": {"name": "m"}}}).spec
    assert missing(shown, everything.model_dump(by_alias=True, mode="json")) == {
        # the other halves of unions
        "model.source.pvc",
        "model.source.image",
        "workload.distribution.histogram",
        # in shared-budget.yaml
        "limits.budget",
        # as for engine.resources.requests
        "engine.resources.limits",
        "router.resources.limits",
        "engine.podTemplate.metadata.annotations",
    }


def missing(shown, known, path=""):
    found = set()
    for key, value in known.items():
        here = f"{path}.{key}".lstrip(".")
        if key not in shown:
            found.add(here)
        elif isinstance(value, dict) and value:
            found |= missing(shown[key], value, here)
    return found


@pytest.mark.parametrize("path", ESTIMATED, ids=lambda path: path.stem)
def test_the_estimated_profiles_are_what_their_command_makes(path):
    written = path.read_text(encoding="utf-8")
    command = shlex.split(written.splitlines()[0].removeprefix("# medley "))
    assert CliRunner().invoke(main, command).stdout == written


def test_every_class_of_the_examples_is_estimated_and_says_so():
    profiles = [read_performance_profile(each).spec for each in every("PerformanceProfile")]
    classes = [each["metadata"]["name"] for each in every("AcceleratorClass")]
    assert sorted(each.accelerator_class for each in profiles) == sorted(classes)
    assert {(each.source, each.confidence) for each in profiles} == {("Estimated", "Low")}


def test_the_profile_of_existing_nodes_is_that_of_their_gpu():
    of = {each["spec"]["acceleratorClass"]: each["spec"] for each in every("PerformanceProfile")}
    assert of["rack-l40s"] == of["l40s"] | {"acceleratorClass": "rack-l40s"}


@pytest.mark.parametrize("kind", READ)
def test_no_example_overwrites_another(kind):
    names = [each["metadata"]["name"] for each in every(kind)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_the_command_at_the_head_of_an_example_plans_it_and_prints_what_stands_there(path, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    lines = path.read_text(encoding="utf-8").splitlines()
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    command, *quoted = [line.removeprefix("#     ") for line in head if line.startswith("#     ")]
    assert f"-f examples/{path.name}" in command
    done = CliRunner().invoke(main, shlex.split(command.removeprefix("medley ")))
    assert done.exit_code == (1 if any("exit status 1" in line for line in head) else 0), done.output
    assert [line for line in quoted if line not in done.stdout] == []
