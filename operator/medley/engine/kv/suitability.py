"""Whether an engine of some configuration can carry KV at all, and what decides its numbers. For scheduler_half.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig


def obstacle(config: VllmConfig, caches: KVCacheConfig) -> str:
    """Return why an engine of this configuration cannot carry KV, or nothing."""
    parallel, groups = config.parallel_config, caches.kv_cache_groups
    spec = groups[0].kv_cache_spec if len(groups) == 1 else None
    windowed = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    divided = parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
    found = (
        (config.model_config.use_mla, "models with latent attention (MLA) cannot be carried yet"),
        (windowed, "models with windowed attention cannot be carried yet"),
        (
            not isinstance(spec, FullAttentionSpec),
            "only models whose layers all have full attention can be carried yet",
        ),
        (config.speculative_config is not None, "speculative decoding: the draft's own cache cannot be carried yet"),
        (
            parallel.data_parallel_size > 1,
            "--data-parallel-size: engines within an engine cannot be carried; run a replica for each",
        ),
        (divided, "context parallelism divides blocks in a way that cannot be carried yet"),
    )
    return next((reason for is_so, reason in found if is_so), "")


def numerics(config: VllmConfig, backends: Iterable[str]) -> Mapping[str, str | int]:
    """Return all that decides which numbers an engine computes, the model's files aside."""
    from vllm import __version__  # noqa: PLC0415 - known once vLLM is imported whole

    model, cache = config.model_config, config.cache_config
    return {
        "vllm": __version__,
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "overrides": repr(model.hf_overrides),
        "cache": str(cache.cache_dtype),
        "block size": cache.block_size,
        "layout": str(cache.kv_cache_layout),
        "attention": " ".join(sorted(backends)),
        "device": config.device_config.device_type,
    }
