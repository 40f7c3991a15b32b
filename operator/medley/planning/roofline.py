"""Step times of a model on a kind of GPU, estimated from their data sheets, with the range that measurements leave.

Called by `medley profile estimate` and the benchmark. Pure: GPUs and models are values; their figures are data of the
command (cli/profile/gpus.yaml).

A step multiplies (2 x parameters x tokens, and attention) and reads (weights once, and every context's KV cache); the
longer of the two decides. Tensor parallelism adds two all-reduces per layer, software a time per step and layer. How
much of a data sheet's rates is reached is measured, not known: `Efficiency` has what public measurements showed, as
(worst, usual, best), and every estimate comes with both ends. docs/profiles.md compares the result with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.profiles import FittedLatency

GIGA, TERA = 1e9, 1e12
USUAL_PROMPT_TOKENS = 2048  # at which attention's share of a prompt token is taken
MEMORY_SHARE = 0.9  # vLLM's --gpu-memory-utilization
# Beside weights and KV cache: activations, CUDA context and graphs, as vLLM reports on 24 to 80 GB cards (1 to 3 GiB).
RESERVED_BYTES = 2 * 2**30
_PIPELINED = 1.25  # further error where stages follow one another: none of the measurements had them


class Dtype(StrEnum):
    """Number format of weights and multiplication."""

    FP32 = "float32"
    FP16 = "float16"
    BF16 = "bfloat16"
    FP8 = "fp8"


BYTES = {Dtype.FP32: 4, Dtype.FP16: 2, Dtype.BF16: 2, Dtype.FP8: 1}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, from its data sheet; rates are dense, without structured sparsity."""

    name: str
    memory_bytes: float
    bytes_per_s: float
    flops: tuple[tuple[Dtype, float], ...]  # multiply-adds count as two
    link_bytes_per_s: float  # to the other GPUs of its node, one direction

    def multiplies(self, dtype: Dtype) -> float:
        """Return the rate of a number format in 1/s; raises InvalidInputError where the GPU does not have it."""
        for each, rate in self.flops:
            if each is dtype:
                return rate
        known = ", ".join(each.value for each, _ in self.flops)
        raise InvalidInputError("--dtype", f"{self.name} does not multiply in {dtype.value}; use one of {known}")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder, from its config.json. `parameters` are those of one token's path; of experts all are in memory."""

    parameters: float
    layers: int
    hidden: int
    kv_heads: int
    head_size: int
    dtype: Dtype = Dtype.BF16
    kv_dtype: Dtype = Dtype.BF16
    parameters_in_memory: float | None = None  # None: the same

    def __post_init__(self) -> None:
        for name in ("parameters", "layers", "hidden", "kv_heads", "head_size"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise InvalidInputError(f"--{name.replace('_', '-')}", f"expected a number above 0, got {value}")

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights."""
        return (self.parameters_in_memory or self.parameters) * BYTES[self.dtype]

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values."""
        return 2.0 * self.layers * self.kv_heads * self.head_size * BYTES[self.kv_dtype]


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What a GPU and its software reach of the data sheet."""

    multiply: float  # part of the dense rate, on prompts
    read: float  # part of the memory bandwidth, on weights and KV cache
    link: float  # part of the link's bandwidth
    layer_s: float  # per layer and step: launching kernels, synchronising
    step_s: float  # per step: scheduling, sampling


# What single GPUs and pairs reached in the published measurements of Helix, SpotServe and Splitwise: multiplying 0.41
# (L4, T4) to 0.89 (V100) on prompts of 500 tokens and more, less with several GPUs, which the links explain only in
# part; reading 0.65 to 0.84. Software: no time where kernels were timed alone (Helix), 0.25 to 0.45 ms per layer in
# vLLM of 2023 without CUDA graphs (Splitwise), which is outside this range on purpose: fit measured steps for such an
# engine. docs/profiles.md has the table; `python -m bench --only profiles` makes it again.
USUAL = Efficiency(multiply=0.55, read=0.77, link=0.5, layer_s=20e-6, step_s=1e-3)
WORST = Efficiency(multiply=0.35, read=0.60, link=0.25, layer_s=100e-6, step_s=4e-3)
BEST = Efficiency(multiply=0.90, read=0.85, link=0.9, layer_s=0.0, step_s=0.3e-3)


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on `tensor_parallel` x `pipeline_parallel` GPUs of a kind."""

    gpu: Gpu
    model: ModelShape
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    def __post_init__(self) -> None:
        if self.model.kv_heads % self.tensor_parallel and self.tensor_parallel % self.model.kv_heads:
            raise InvalidInputError(
                "--tp", f"{self.tensor_parallel} does not divide the {self.model.kv_heads} key-value heads"
            )
        self.gpu.multiplies(self.model.dtype)

    @property
    def kv_copies(self) -> int:
        """How often each key-value head is held: more GPUs than heads hold copies."""
        return max(1, self.tensor_parallel // self.model.kv_heads)

    def kv_tokens(self) -> int:
        """Return the tokens of KV cache beside the weights; 0: the weights alone do not fit."""
        gpus = self.tensor_parallel * self.pipeline_parallel
        free = gpus * (self.gpu.memory_bytes * MEMORY_SHARE - RESERVED_BYTES) - self.model.weight_bytes
        return max(0, math.floor(free / (self.model.kv_bytes_per_token * self.kv_copies)))

    def step_s(
        self,
        prefill_tokens: float,
        sequences: float,
        context_tokens: float,
        *,
        efficiency: Efficiency = USUAL,
        prompt_tokens: float = USUAL_PROMPT_TOKENS,
    ) -> float:
        """Return the seconds of one step: the longer of multiplying and reading, all-reduces, and software.

        `context_tokens`: sum over the decoding sequences; `prompt_tokens`: length of the prompts that are prefilled.
        """
        tokens = prefill_tokens + sequences
        multiplying = tokens * self._token_multiply_s(efficiency) + prefill_tokens * prompt_tokens * self._attention_s(
            efficiency
        )
        reading = self._weights_s(efficiency) + context_tokens * self._context_s(efficiency)
        return max(multiplying, reading) + tokens * self._reduce_s(efficiency) + self._software_s(efficiency)

    def linear(self, *, efficiency: Efficiency = USUAL, max_running: int, max_batched_tokens: int) -> LatencyModel:
        """Return the latency model: reading and multiplying add up, so it is never faster than the roofline.

        Measured steps do add up, nearly: small batches multiply badly (docs/profiles.md). Stages of a pipeline work on
        different batches at once: a step's time is that of all stages, and each batch has its part of the sequences.
        Raises InvalidInputError where the model does not fit.
        """
        held = self.kv_tokens()
        if not held:
            gpus = self.tensor_parallel * self.pipeline_parallel
            need = self.model.weight_bytes / GIGA
            have = gpus * (self.gpu.memory_bytes * MEMORY_SHARE - RESERVED_BYTES) / GIGA
            raise InvalidInputError(
                "--tp",
                f"{need:,.0f} GB of weights do not fit {gpus} x {self.gpu.name} ({have:.0f} GB usable): raise it, "
                "or choose a larger GPU or a smaller --dtype",
            )
        step, prompt, sequence, context = self.coefficients(efficiency)
        return LatencyModel(
            step_s=step,
            per_prefill_token_s=prompt,
            per_sequence_s=sequence,
            per_context_token_s=context,
            kv_tokens=held,
            max_running=max_running,
            max_batched_tokens=max_batched_tokens,
        )

    def coefficients(self, efficiency: Efficiency = USUAL) -> tuple[float, float, float, float]:
        """Return the seconds of a step, and per prompt token, sequence and context token; whether it fits or not."""
        token = self._token_multiply_s(efficiency) + self._reduce_s(efficiency)
        stages = self.pipeline_parallel
        return (
            self._weights_s(efficiency) + self._software_s(efficiency),
            (token + USUAL_PROMPT_TOKENS * self._attention_s(efficiency)) / stages,
            token / stages,
            self._context_s(efficiency) / stages,
        )

    def estimate(self, *, max_running: int, max_batched_tokens: int, longest: int) -> FittedLatency:
        """Return the usual model; its error is that of a step of a usual mix between the worst and the best.

        The range is all that the replica can hold, up to requests of `longest` tokens: a data sheet has no range.
        """
        usual, worst, best = (
            self.linear(efficiency=each, max_running=max_running, max_batched_tokens=max_batched_tokens)
            for each in (USUAL, WORST, BEST)
        )
        batch = min(max_running, 32)
        steps = ((0, 1, 1000), (512, batch, 1000 * batch), (max_batched_tokens, 0, 0))
        off = max(max(worst.step(*each) / usual.step(*each), usual.step(*each) / best.step(*each)) for each in steps)
        return FittedLatency(
            usual,
            error=off * (_PIPELINED if self.pipeline_parallel > 1 else 1.0) - 1,
            largest_prefill_tokens=max_batched_tokens,
            largest_sequences=max_running,
            largest_context_tokens=longest,
        )

    def _token_multiply_s(self, efficiency: Efficiency) -> float:
        rate = self.gpu.multiplies(self.model.dtype) * efficiency.multiply * self.tensor_parallel
        return 2 * self.model.parameters / rate

    def _attention_s(self, efficiency: Efficiency) -> float:
        """Seconds per prompt token and token of its prompt: scores and sums, of which causality needs half."""
        rate = self.gpu.multiplies(self.model.dtype) * efficiency.multiply * self.tensor_parallel
        return 2 * self.model.layers * self.model.hidden / rate

    def _weights_s(self, efficiency: Efficiency) -> float:
        return self.model.weight_bytes / (self.gpu.bytes_per_s * efficiency.read * self.tensor_parallel)

    def _context_s(self, efficiency: Efficiency) -> float:
        read = self.model.kv_bytes_per_token * self.kv_copies
        return read / (self.gpu.bytes_per_s * efficiency.read * self.tensor_parallel)

    def _reduce_s(self, efficiency: Efficiency) -> float:
        """Seconds per token: two ring all-reduces of the hidden state per layer."""
        ranks = self.tensor_parallel
        moved = 2 * (ranks - 1) / ranks * self.model.hidden * BYTES[self.model.dtype]
        return 2 * self.model.layers * moved / (self.gpu.link_bytes_per_s * efficiency.link)

    def _software_s(self, efficiency: Efficiency) -> float:
        return self.model.layers * efficiency.layer_s + self.pipeline_parallel * efficiency.step_s
