"""What rests on more than was measured is said where people look: the condition ProfilesReady, and why a class is out."""

from __future__ import annotations

from medley.core.accelerators import Shape
from medley.core.latency import LatencyModel
from medley.core.names import Condition
from medley.core.profiles import Confidence, FittedLatency
from medley.planning.fleet import Truth
from medley.planning.reconcile import plan
from medley.testing.builders import NOW, observed, profile

# Fast enough for the promise of the builders' service, whose requests are of up to 1000 + 1000 tokens.
MODEL = LatencyModel(10e-3, 50e-6, 50e-6, 0.1e-6, 200_000, 32, 2048)


def fitted(name="l4", **largest):
    limits = {"largest_prefill_tokens": 4096, "largest_sequences": 32, "largest_context_tokens": 4096} | largest
    return profile(name, points=(), latency=FittedLatency(MODEL, error=0.2, **limits), confidence=Confidence.HIGH)


def profiles_ready(*profiles):
    decided = plan(observed(profiles=profiles), NOW)
    return next(each for each in decided.status.conditions if each.type is Condition.PROFILES_READY), decided


def test_a_latency_model_alone_makes_a_plan():
    said, decided = profiles_ready(fitted())
    assert (said.status, said.message.splitlines()[0].startswith("Planned with model-7b-l4")) == (Truth.TRUE, True)
    assert "beyond" not in said.message
    assert {key.shape for key, _ in decided.status.proposal.allocation.replicas} == {Shape("l4")}


def test_sizes_beyond_what_was_measured_are_named_with_the_lower_confidence():
    said, _ = profiles_ready(fitted(largest_context_tokens=1500))
    assert said.status is Truth.TRUE
    assert (
        "beyond what was measured: l4: 1000 + 1000 tokens are extrapolated to 2000 tokens of context, measured up to 1500, "
        "confidence Medium; measure these sizes"
    ) in said.message


def test_sizes_far_beyond_make_a_class_one_that_cannot_serve():
    said, decided = profiles_ready(fitted(largest_context_tokens=900))
    assert "beyond what was measured" not in said.message
    reasons = [each.message for each in decided.status.proposal.not_used if each.accelerator_class == "l4"]
    (reason,) = reasons
    assert reason == "profile: measured up to 900 tokens of context, 2,000 are more than 2 times that"
