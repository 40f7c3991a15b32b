"""vLLM's counters, read from the text of its `/metrics`. Called by client.py and policy.py; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

# Names without prefix and `_total`: vLLM 0.x and 1.x, and the older engine, differ only in these.
_COUNTED: Final = frozenset({
    "generation_tokens", "prompt_tokens", "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
    "gpu_cache_usage_perc",
})  # fmt: skip
_PREFIXES: Final = ("vllm:", "vllm_")


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of one vLLM server (sums over its data-parallel engines) at one time."""

    at: float  # seconds, the caller's monotonic clock
    running: int
    waiting: int
    generated: int  # tokens since vLLM started
    prompted: int  # prompt tokens since vLLM started
    cache_usage: float  # of the KV cache, 0 to 1 per engine

    @property
    def busy(self) -> bool:
        """Whether some request has not ended."""
        return self.running + self.waiting > 0


class Mark(NamedTuple):
    """The work done so far: if it changes, the engine's loop turns.

    The use of the KV cache is part of it because vLLM counts prompt tokens only when the prefill is complete: in a
    long chunked prefill, only the blocks taken show that it goes on.
    """

    generated: int
    prompted: int
    cache_usage: float


def mark_of(sample: Sample) -> Mark:
    """Return the work that a sample shows."""
    return Mark(sample.generated, sample.prompted, sample.cache_usage)


def sample_from(text: str, at: float) -> Sample | None:
    """Return the counters in a Prometheus text, or None if it has not those of an engine (yet), or not as numbers."""
    totals: dict[str, float] = {}
    try:
        for line in text.splitlines():
            if not line.startswith(_PREFIXES):
                continue
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0][len(_PREFIXES[0]) :].removesuffix("_total")
            if name in _COUNTED:
                totals[name] = totals.get(name, 0.0) + float(value)
        return Sample(
            at=at,
            running=int(totals["num_requests_running"]),
            waiting=int(totals["num_requests_waiting"]),
            generated=int(totals["generation_tokens"]),
            prompted=int(totals["prompt_tokens"]),
            cache_usage=totals.get("kv_cache_usage_perc", totals.get("gpu_cache_usage_perc", 0.0)),
        )
    except (KeyError, ValueError, OverflowError):  # absent, no number, NaN, infinite
        return None
