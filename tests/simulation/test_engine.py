"""One engine: exact small cases by hand, any case against a stepwise oracle, and nothing lost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.simulation.arrivals import Requests
from medley.simulation.engine import Engine, Ledger
from medley.simulation.fleet import Replica, serve
from tests.simulation.stepwise import stepwise

# Whole milliseconds, so that sums can be done in the head.
MODEL = LatencyModel(
    step_s=0.010,
    per_prefill_token_s=0.001,
    per_sequence_s=0.002,
    per_context_token_s=0.0001,
    kv_tokens=1600,
    max_running=8,
    max_batched_tokens=100,
)


def requests(*rows: tuple[float, int, int]) -> Requests:
    times, inputs, outputs = zip(*rows, strict=True)
    return Requests(np.array(times, float), np.array(inputs), np.array(outputs))


def one(model: LatencyModel, *rows: tuple[float, int, int], block_tokens: int = 16):
    return serve(requests(*rows), [Replica("a", "s", model)], block_tokens=block_tokens)


def test_a_prompt_alone_takes_its_steps_and_yields_a_token():
    served = one(MODEL, (1.0, 50, 1))
    assert served.first_token_s.tolist() == pytest.approx([1 + 0.010 + 0.050])
    assert served.last_token_s.tolist() == served.first_token_s.tolist()


def test_a_prompt_longer_than_the_budget_takes_several_steps():
    served = one(MODEL, (0.0, 250, 1))
    assert served.first_token_s.tolist() == pytest.approx([0.110 + 0.110 + 0.060])


def test_decoding_reads_a_context_that_grows_by_one_token_a_step():
    served = one(MODEL, (0.0, 50, 4))
    # Steps read 51, 52 and 53 tokens.
    assert served.last_token_s[0] - served.first_token_s[0] == pytest.approx(3 * 0.012 + 0.0001 * (51 + 52 + 53))
    assert served.tpot_s.tolist() == pytest.approx([0.012 + 0.0052])


def test_a_prompt_that_comes_while_another_decodes_joins_at_the_next_step():
    served = one(MODEL, (0.0, 50, 3), (0.061, 20, 1))
    second = 0.060 + 0.012 + 0.0051  # the step in which the second request comes
    joined = second + 0.010 + 0.020 + 0.002 + 0.0052  # its prompt and the other's last token share a step
    assert served.first_token_s.tolist() == pytest.approx([0.060, joined])
    assert served.last_token_s.tolist() == pytest.approx([joined, joined])


def test_prompts_share_a_step_up_to_the_budget_in_order_of_arrival():
    served = one(MODEL, (0.0, 10, 1), (0.001, 70, 1), (0.002, 60, 1))
    assert served.first_token_s.tolist() == pytest.approx([0.020, 0.020 + 0.110, 0.020 + 0.110 + 0.040])


def test_no_more_run_than_may():
    served = one(replace(MODEL, max_running=1), (0.0, 10, 2), (0.0, 10, 1))
    assert served.first_token_s.tolist() == pytest.approx([0.020, 0.020 + 0.0131 + 0.020])


def test_a_prompt_that_does_not_fit_waits_while_the_others_decode():
    served = one(replace(MODEL, kv_tokens=32), (0.0, 16, 3), (0.001, 16, 2))
    alone = 0.026 + 2 * 0.012 + 0.0001 * (17 + 18)  # the first takes the free block for its second token
    assert served.preemptions == 0
    assert served.last_token_s[0] == pytest.approx(alone)
    assert served.first_token_s[1] == pytest.approx(alone + 0.026)


def test_when_memory_is_full_the_last_to_start_gives_way_and_recomputes():
    served = one(replace(MODEL, kv_tokens=32), (0.0, 15, 4), (0.0, 15, 4))
    prompts = 0.010 + 0.030
    together = 0.010 + 2 * (0.002 + 0.0016)  # the second tokens fill both blocks
    alone = 2 * 0.012 + 0.0001 * (17 + 18)  # the first needs a block: the second gives its own
    recomputed = 0.010 + 0.017  # 15 of the prompt and 2 that it had generated: its third token
    assert served.preemptions == 1
    assert served.first_token_s.tolist() == pytest.approx([prompts, prompts])
    assert served.last_token_s.tolist() == pytest.approx(
        [prompts + together + alone, prompts + together + alone + recomputed + 0.012 + 0.0018]
    )


def test_a_request_that_can_never_fit_is_refused():
    with pytest.raises(InvalidInputError, match="never fit"):
        one(replace(MODEL, kv_tokens=64), (0.0, 60, 10))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=14),
    st.integers(5, 12),
    st.integers(1, 5),
    st.integers(5, 60),
    st.sampled_from([1, 3, 16]),
)
def test_any_run_is_what_the_stepwise_oracle_says(rows, blocks, most, budget, block):
    model = replace(MODEL, kv_tokens=max(blocks * 16, 80), max_running=most, max_batched_tokens=budget)
    # Times off the lattice of step ends, where rounding would decide who comes first.
    timed = sorted((at * 0.00317 + 0.0000001, i, o) for at, i, o in rows)
    ledger = Ledger([i for _, i, _ in timed], [o for _, _, o in timed])
    engine = Engine(model, ledger, block_tokens=block)
    ended: list[int] = []
    for number, (at, _, _) in enumerate(timed):
        while engine.boundary_s < at:
            ended += engine.advance()
        engine.submit(number, at)
    while engine.boundary_s < math.inf:
        ended += engine.advance()
    first, last, preemptions = stepwise(model, timed, block)
    numbers = range(len(timed))
    assert ledger.first_token_s == pytest.approx([first[n] for n in numbers])
    assert ledger.last_token_s == pytest.approx([last[n] for n in numbers])
    assert ledger.preemptions == preemptions
    assert sorted(ended) == list(numbers)
    assert engine.free_blocks == model.kv_tokens // block
