# ruff: noqa: INP001  # a script beside the manifests, not a package
"""Estimate PerformanceProfiles from data sheets.

    python examples/estimate_profiles.py > examples/performanceprofiles.yaml

A first guess for people who have measured nothing yet; the profiles say `source: Estimated` and `confidence: Low`. One
replica is one GPU that decodes as fast as it reads weights and KV cache, and prefills as fast as it multiplies, at the
efficiencies below. Requests arrive at random: the number that runs is Poisson, so a percentile of TPOT is that of the
step at this percentile of the number that runs; TTFT is the prefill, its queue (M/D/1, exponential tail), and a step.
Nothing else is modelled: no chunked prefill, no prefix cache.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from statistics import NormalDist

GIGA = 1e9
READ_EFFICIENCY = 0.7  # of the bandwidth on the data sheet, reached while decoding
MULTIPLY_EFFICIENCY = 0.45  # of the dense bf16 rate on the data sheet, reached while prefilling
STEP_OVERHEAD_S = 0.003
MEMORY_SHARE = 0.9  # vLLM's --gpu-memory-utilization
MOST_RUNNING = 256  # vLLM's --max-num-seqs
UTILISATIONS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the highest rate that is stable
PERCENTILES = (90, 99)
INPUTS = (100, 500, 2000, 8000)
OUTPUTS = (100, 250, 1000)
MAX_MODEL_LEN = 16384
USUAL = (1000, 250)  # input and output tokens by which maxRunning is judged


@dataclass(frozen=True, slots=True)
class Model:
    """A dense decoder in bf16."""

    name: str
    slug: str
    parameters: float
    kv_bytes_per_token: float  # layers x 2 x key-value heads x head size x 2 bytes


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, from NVIDIA's data sheet."""

    accelerator_class: str
    bytes_per_s: float
    flops: float
    memory_bytes: float


MODEL = Model("meta-llama/Llama-3.1-8B-Instruct", "llama-3-1-8b", 8.03e9, 32 * 2 * 8 * 128 * 2)
GPUS = (
    Gpu("l4", 300 * GIGA, 121e12, 24 * 2**30),
    Gpu("a10g", 600 * GIGA, 70e12, 24 * 2**30),
    Gpu("l40s", 864 * GIGA, 362e12, 48 * 2**30),
    Gpu("a100-80gb", 2039 * GIGA, 312e12, 80 * 2**30),
    Gpu("h100", 3350 * GIGA, 989e12, 80 * 2**30),
)


@dataclass(frozen=True, slots=True)
class Replica:
    """A model on a GPU, at one request size."""

    gpu: Gpu
    input_tokens: int
    output_tokens: int

    @property
    def prefill_s(self) -> float:
        """Time to prefill one request alone."""
        return 2 * MODEL.parameters * self.input_tokens / (self.gpu.flops * MULTIPLY_EFFICIENCY)

    @property
    def most_running(self) -> int:
        """Requests whose KV cache fits beside the weights."""
        free = self.gpu.memory_bytes * MEMORY_SHARE - 2 * MODEL.parameters
        longest = (self.input_tokens + self.output_tokens) * MODEL.kv_bytes_per_token
        return min(MOST_RUNNING, math.floor(free / longest))

    def step_s(self, running: float) -> float:
        """Time of one decoding step."""
        context = self.input_tokens + self.output_tokens / 2
        read = 2 * MODEL.parameters + running * context * MODEL.kv_bytes_per_token
        return read / (self.gpu.bytes_per_s * READ_EFFICIENCY) + STEP_OVERHEAD_S

    def running(self, rate: float) -> float:
        """Mean number of requests running at a rate, by Little's law; infinite if the replica cannot keep up."""
        left = 1 - rate * self.prefill_s  # prefills interrupt decoding
        alone = self.step_s(0)
        each = self.step_s(1) - alone
        slope = left - rate * self.output_tokens * each
        return rate * self.output_tokens * alone / slope if left > 0 and slope > 0 else math.inf

    def at_most(self, rate: float, percentile: float) -> float:
        """Return the number of requests running that is exceeded with probability 1 - percentile."""
        mean = self.running(rate)
        return mean + NormalDist().inv_cdf(percentile / 100) * math.sqrt(mean)

    def highest_rate(self) -> float:
        """Return the highest rate at which 99 % of the time all requests fit, by bisection, in requests/s."""
        low, high = 0.0, 1 / self.prefill_s
        for _ in range(60):
            middle = (low + high) / 2
            fits = self.at_most(middle, max(PERCENTILES)) <= self.most_running if middle else True
            low, high = (middle, high) if fits else (low, middle)
        return low

    def latencies_s(self, rate: float, percentile: float) -> tuple[float, float]:
        """TTFT and TPOT at a percentile."""
        step = self.step_s(self.at_most(rate, percentile))
        busy = rate * self.prefill_s
        mean_wait = busy * self.prefill_s / (2 * (1 - busy))
        ttft = self.prefill_s + mean_wait * -math.log(1 - percentile / 100) + step
        return ttft, step / (1 - busy)


def main() -> None:
    """Print one profile per GPU, a point per line."""
    sys.stdout.write(
        "# Estimated, not measured: made by examples/estimate_profiles.py from data sheets. Enough to see a plan,\n"
        "# not to sign an SLO: measure on your own nodes and put the numbers here with source: Measured.\n"
    )
    for gpu in GPUS:
        sizes = [Replica(gpu, i, o) for i in INPUTS for o in OUTPUTS]
        sys.stdout.write(
            "---\n"
            "apiVersion: medley.dev/v1alpha1\n"
            "kind: PerformanceProfile\n"
            f"metadata: {{name: {MODEL.slug}-{gpu.accelerator_class}}}\n"
            "spec:\n"
            f"  model: {MODEL.name}\n"
            f"  acceleratorClass: {gpu.accelerator_class}\n"
            "  source: Estimated\n"
            "  confidence: Low\n"
            f"  maxModelLen: {MAX_MODEL_LEN}\n"
            f"  maxRunning: {Replica(gpu, *USUAL).most_running}\n"
            "  points:\n"
        )
        for size in sizes:
            for utilisation in UTILISATIONS:
                sys.stdout.write(_line(size, _rounded(size.highest_rate() * utilisation)))


def _line(size: Replica, rate: float) -> str:
    latencies = []
    for percentile in PERCENTILES:
        ttft, tpot = size.latencies_s(rate, percentile)
        latencies.append(f"{{percentile: {percentile}, ttft: {_ms(ttft)}, tpot: {_us(tpot)}}}")
    sizes = f"inputTokens: {size.input_tokens}, outputTokens: {size.output_tokens}, requestsPerSecond: {rate:g}"
    return f"  - {{{sizes}, latencies: [{', '.join(latencies)}]}}\n"


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _ms(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds * 1e3))}ms"


def _us(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds * 1e4) * 100)}us"


if __name__ == "__main__":
    main()
