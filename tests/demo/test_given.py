"""What a user of a cluster of their own gives the demo, and what it says when something is missing."""

import re

import pytest
import yaml

from e2e.demo import given, manifests
from e2e.demo.place import PlaceError

IMAGE = "registry.example/vllm:1"


def objects(**spec):
    return [
        manifests.service("chat", "team", IMAGE, **spec),
        manifests.profile("l4"),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token", "namespace": "team"}},
        manifests.accelerator_class("l4"),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}},
    ]


def parsed(things):
    return given.manifest(yaml.safe_dump_all(things), "own.yaml")


def test_objects_are_applied_in_an_order_that_works():
    kinds = [each["kind"] for each in parsed(objects()).objects]
    assert kinds == ["Namespace", "Secret", "AcceleratorClass", "PerformanceProfile", "LLMService"]


def test_a_list_is_the_objects_in_it():
    assert parsed([{"apiVersion": "v1", "kind": "List", "items": objects()}]) == parsed(objects())


def test_what_the_file_leaves_out_of_the_catalogue_is_looked_for_in_the_cluster():
    assert parsed(objects()).lacking == ()
    assert parsed(objects()[:1]).lacking == ("AcceleratorClass", "PerformanceProfile")
    assert parsed(objects()[:2]).lacking == ("AcceleratorClass",)


@pytest.mark.parametrize(
    ("model", "served"),
    [({"name": "org/model"}, "org/model"), ({"name": "org/model", "servedName": "assistant"}, "assistant")],
)
def test_clients_ask_for_the_name_that_is_served(model, served):
    item = manifests.service("chat", "team", IMAGE)
    item["spec"]["model"] = model
    assert parsed([item]).model == served


@pytest.mark.parametrize(
    ("arguments", "exact"),
    [
        (["--dtype=float32"], True),
        (["--dtype", "float32"], True),
        (["--dtype=bfloat16"], False),
        (["--kv-cache-dtype=float32x"], False),
        ([], False),
    ],
)
def test_only_fp32_promises_equal_tokens(arguments, exact):
    item = manifests.service("chat", "team", IMAGE)
    item["spec"]["engine"] = {"args": arguments}
    assert parsed([item]).exact is exact


@pytest.mark.parametrize(
    ("things", "said"),
    [
        pytest.param([], "exactly one LLMService is needed, it holds: none", id="nothing"),
        pytest.param(
            objects() + objects(), "exactly one LLMService is needed, it holds: chat, chat", id="two services"
        ),
        pytest.param([{"kind": "Secret"}], "object 1 has no kind or no metadata.name", id="no name"),
        pytest.param(["text"], "object 1 has no kind or no metadata.name", id="not an object"),
        pytest.param(objects(mode="Plan"), "spec.mode: Plan buys nothing; leave it out", id="a plan only"),
        pytest.param(
            objects(limits={"maxReplicas": 2}),
            "spec.limits.maxReplicas: 2; one that replaces the lost one needs 3 or more",
            id="no room for a successor",
        ),
        pytest.param(
            objects(model={"name": "m", "maxModelLen": 2048}),
            "spec.model.maxModelLen: 2048; the demo's longest request needs 4096",
            id="short context",
        ),
        pytest.param(
            objects(model={"name": "m"}),
            "no PerformanceProfile has spec.model: m, which is the LLMService's spec.model.name",
            id="a model without profile",
        ),
        pytest.param(
            [manifests.service("chat", "team", IMAGE), manifests.profile("l4"), manifests.accelerator_class("h100")],
            "its profiles of stage/chaotic-llama are for l4; none of its AcceleratorClasses (h100) has a profile",
            id="a class without profile",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_field(things, said):
    with pytest.raises(PlaceError, match=re.escape(said)):
        parsed(things)


def test_what_is_not_yaml_is_refused_with_the_file():
    with pytest.raises(PlaceError, match=r"^DEMO_MANIFEST=own\.yaml: not YAML"):
        given.manifest("{", "own.yaml")


def test_images_come_from_a_registry_or_one_by_one():
    own = {"operator": "r/medley-operator:1", "router": "r/medley-router:1", "engineInit": "r/medley-engine:1"}
    assert given.images({"IMAGE_REGISTRY": "r/", "IMAGE_TAG": "1"}) == own
    one = {"IMAGE_REGISTRY": "r", "IMAGE_TAG": "1", "MEDLEY_ROUTER_IMAGE": "elsewhere/router:2"}
    assert given.images(one) == own | {"router": "elsewhere/router:2"}


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({}, "MEDLEY_OPERATOR_IMAGE, MEDLEY_ROUTER_IMAGE, MEDLEY_ENGINE_INIT_IMAGE"),
        ({"IMAGE_REGISTRY": "r"}, "MEDLEY_OPERATOR_IMAGE, MEDLEY_ROUTER_IMAGE, MEDLEY_ENGINE_INIT_IMAGE"),
        ({"MEDLEY_OPERATOR_IMAGE": "o:1", "MEDLEY_ROUTER_IMAGE": "r:1"}, "MEDLEY_ENGINE_INIT_IMAGE"),
    ],
)
def test_missing_images_are_named_by_their_variable(environment, missing):
    with pytest.raises(PlaceError, match=f"set IMAGE_REGISTRY and IMAGE_TAG .*, or {missing}$"):
        given.images(environment)
