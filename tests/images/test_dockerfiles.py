"""The images install what the distribution asks for, pinned, and run as nobody."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Never called by a router: it follows plans and makes none.
SOLVER = {"numpy", "highspy"}


def names(requirements):
    return {re.split(r"[<>=!~;\[ ]", each)[0].lower() for each in requirements}


def required_by(image):
    lines = (ROOT / "images" / image / "requirements.txt").read_text().splitlines()
    return names(line for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(("image", "without"), [("operator", set()), ("router", SOLVER)])
def test_an_image_installs_what_its_extra_needs(image, without):
    assert required_by(image) == names(PROJECT["dependencies"] + PROJECT["optional-dependencies"][image]) - without


@pytest.mark.parametrize("image", ["operator", "router"])
def test_every_requirement_is_pinned(image):
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert required_by(image) <= pinned


def test_the_engines_part_has_no_dependency_of_its_own():
    assert PROJECT["optional-dependencies"]["engine"] == []


@pytest.mark.parametrize("image", ["operator", "router", "engine"])
def test_an_image_runs_as_nobody_from_a_pinned_base(image):
    dockerfile = (ROOT / "images" / image / "Dockerfile").read_text()
    last_stage = dockerfile.rpartition("\nFROM ")[2]
    assert "USER 65532:65532" in last_stage
    assert "RUN " not in last_stage
    (base,) = re.findall(r"^ARG BASE=(\S+)$", dockerfile, re.MULTILINE)
    assert re.search(r":\d+\.\d+\.\d+", base)
