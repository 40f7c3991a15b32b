"""How long one engine step takes: the linear latency model of one replica of one shape that serves one model.

A value of core, since profiles carry it (`core/profiles.py`). Called by `mixture` and `queueing` (capacity), `roofline`
and `fit` (which make such models) and the simulator. Pure.

A step runs a batch: chunks of prompts (prefill) beside one token for every running sequence (decode). Its time is
taken to be linear in what the batch holds. What supports that: weights are read once per step whatever the batch
(step_s); matrix multiplications grow with the tokens (per_prefill_token_s, per_sequence_s); attention of a decoding
sequence reads its whole KV cache once (per_context_token_s). Splitwise (arXiv 2311.18677) and Vidur (arXiv 2405.05465)
fit the same terms to measured engines.

Where it does not hold:
* Attention of a prompt is quadratic in its length. Up to about 4,000 tokens of a 7B model it is below a tenth of the
  prompt's time; of 16,000 tokens it is a third. A fit over long prompts spreads it over their tokens.
* Matrix multiplications have a knee: below some 100 to 300 tokens per step reading the weights hides them. The model
  has no knee; it adds both, which is too slow by at most a factor of two where they are equal, and never too fast.
* GPU kernels are tiled, so a measured curve has stairs of a few per cent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from medley.core.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """One replica of one shape serving one model.

    Times are seconds and may be 0, except that a step always takes some time; counts are at least 1. Raises
    InvalidInputError, which names the field.
    """

    step_s: float  # of one step of the engine, whatever it holds
    per_prefill_token_s: float  # per prompt token that the step processes
    per_sequence_s: float  # per running (decoding) sequence
    per_context_token_s: float  # per token of KV cache that decoding sequences read
    kv_tokens: int  # tokens of KV cache that the replica holds
    max_running: int  # sequences that run at once
    max_batched_tokens: int  # tokens of one step: prompt chunks and one per decoding sequence

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.endswith("_s"):
                if not math.isfinite(value) or value < 0:
                    raise InvalidInputError(
                        f"latency model: {each.name}", f"expected seconds of 0 or more, got {value}"
                    )
            elif not math.isfinite(value) or value < 1 or value != int(value):
                raise InvalidInputError(
                    f"latency model: {each.name}", f"expected a whole number of 1 or more, got {value}"
                )
        if self.step_s + self.per_sequence_s == 0:
            raise InvalidInputError(
                "latency model: step_s", "expected a step that takes time; step_s and per_sequence_s are both 0"
            )
        if self.max_batched_tokens < self.max_running:
            raise InvalidInputError(
                "latency model: max_batched_tokens",
                f"expected at least max_running ({self.max_running}), since every decoding sequence takes one token of "
                f"a step; got {self.max_batched_tokens}",
            )

    def step(self, prefill_tokens: float, sequences: float, context_tokens: float) -> float:
        """Return the seconds that one step takes.

        `prefill_tokens`: prompt tokens in the step; `sequences`: decoding; `context_tokens`: the sum of their contexts.
        """
        return (
            self.step_s
            + self.per_prefill_token_s * prefill_tokens
            + self.per_sequence_s * sequences
            + self.per_context_token_s * context_tokens
        )
