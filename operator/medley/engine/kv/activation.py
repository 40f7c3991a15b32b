"""Decides whether this engine carries KV, and if so gives vLLM its connector. Called by the plugin in the API server.

`MEDLEY_MIGRATION` says what is wanted. Every part of vLLM that the connector relies on is compared first: with another
vLLM, `Live` does not start and says which part changed, and `Auto` starts as `Resume` and says so in
`GET /medley/v1/kv`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, Final

from medley.core.errors import EngineError, InvalidInputError
from medley.core.service import MigrationMode
from medley.engine.command import MIGRATION as VARIABLE
from medley.engine.plugin.symbols import Symbol, differences

_LOG: Final = logging.getLogger("vllm.medley.kv")
_INSTALLED: Final = "_medley_kv"
_CONNECTOR: Final = "MedleyConnector"  # the class in connector.py

# What endpoints.py calls in the engine core, and utilities.py adds to it.
EXPORT: Final = "medley_export"
RENEW: Final = "medley_renew"
RELEASE: Final = "medley_release"
STATE: Final = "medley_state"

_BASE: Final = "vllm.distributed.kv_transfer.kv_connector.v1.base"
_CORE: Final = "vllm.v1.engine.core"
_SCHEDULER: Final = "vllm.v1.core.sched.scheduler"
SYMBOLS: Final = (
    Symbol("vllm.engine.arg_utils", "EngineArgs.create_engine_config", "self usage_context", "kv_transfer_config"),
    Symbol("vllm.config", "KVTransferConfig", "kv_connector"),
    Symbol("vllm.config", "get_layers_from_vllm_config", "vllm_config layer_type layer_names"),
    Symbol("vllm.distributed.parallel_state", "get_tp_group"),
    Symbol("vllm.distributed.parallel_state", "get_pp_group"),
    Symbol("vllm.model_executor.layers.attention_layer_base", "AttentionLayerBase.get_attn_backend", "self"),
    Symbol("vllm.v1.kv_cache_interface", "FullAttentionSpec"),
    Symbol("vllm.v1.metrics.cache_hit_source", "CacheHitSource.P2P"),
    Symbol(
        "vllm.v1.metrics.stats",
        "PrefillStats.set",
        "self num_prompt_tokens num_local_cached_tokens num_external_cached_tokens",
    ),
    Symbol(_BASE, "KVConnectorBase_V1.__init__", "self vllm_config role kv_cache_config"),
    Symbol(_BASE, "KVConnectorBase_V1.bind_kv_cache_manager", "self kv_cache_manager"),
    Symbol(_BASE, "KVConnectorBase_V1.set_xfer_handshake_metadata_pp_aware", "self metadata"),
    Symbol(_BASE, "KVConnectorBase_V1.on_new_request", "self request"),
    Symbol(_BASE, "KVConnectorBase_V1.get_num_new_matched_tokens", "self request num_computed_tokens"),
    Symbol(_BASE, "KVConnectorBase_V1.update_state_after_alloc", "self request blocks num_external_tokens"),
    Symbol(_BASE, "KVConnectorBase_V1.build_connector_meta", "self scheduler_output"),
    Symbol(_BASE, "KVConnectorBase_V1.request_finished", "self request block_ids"),
    Symbol(_BASE, "SupportsHMA.request_finished_all_groups", "self request block_ids"),
    Symbol(_BASE, "KVConnectorBase_V1.register_kv_caches", "self kv_caches"),
    Symbol(_BASE, "KVConnectorBase_V1.get_handshake_metadata", "self"),
    Symbol(_BASE, "KVConnectorBase_V1.bind_connector_metadata", "self connector_metadata"),
    Symbol(_BASE, "KVConnectorBase_V1.start_load_kv", "self forward_context"),
    Symbol(_BASE, "KVConnectorBase_V1.get_transfer_results", "self finished_req_ids"),
    Symbol(_BASE, "KVConnectorBase_V1._get_connector_metadata", "self"),
    Symbol(_BASE, "KVConnectorTransferResults", "finished_sending finished_recving failed_recving"),
    Symbol("vllm.v1.engine", "EngineCoreRequestType.WAKEUP"),
    Symbol("vllm.v1.engine.core_client", "AsyncMPClient.call_utility_async", "self method"),
    Symbol(
        _CORE, "EngineCore.__init__", "self vllm_config", "_idle_state_callbacks set_xfer_handshake_metadata_pp_aware"
    ),
    Symbol(_CORE, "EngineCoreProc._process_input_queue", "self", "_notify_idle_state_callbacks input_queue"),
    Symbol(_CORE, "EngineCoreProc._notify_idle_state_callbacks", "self", "_idle_state_callbacks pop"),
    Symbol(_CORE, "EngineCoreProc._handle_client_request", "self request_type request", "WAKEUP UTILITY"),
    Symbol(_CORE, "EngineCoreProc._send_abort_outputs", "self aborted_reqs"),
    Symbol(_SCHEDULER, "Scheduler.finish_requests", "self request_ids finished_status"),
    Symbol(_SCHEDULER, "Scheduler.get_kv_connector", "self"),
    Symbol(
        _SCHEDULER,
        "Scheduler.schedule",
        "self",
        "get_num_new_matched_tokens update_state_after_alloc _build_kv_connector_meta WAITING_FOR_REMOTE_KVS",
    ),
    Symbol(_SCHEDULER, "Scheduler._handle_failed_recving", "self failed_req_ids", "recompute_kv_load_failures"),
    Symbol(_SCHEDULER, "Scheduler._update_waiting_for_remote_kv", "self request", "failed_recving_kv_req_ids free"),
    Symbol(
        "vllm.v1.request",
        "Request.__init__",
        "self request_id prompt_token_ids",
        "num_computed_tokens num_in_flight_tokens kv_transfer_params mm_features lora_request prompt_embeds "
        "prefill_stats",
    ),
    Symbol("vllm.v1.request", "RequestStatus.WAITING_FOR_REMOTE_KVS"),
    Symbol(
        "vllm.v1.core.kv_cache_manager",
        "KVCacheManager.get_block_ids_for_computed_tokens",
        "self request_id num_computed_tokens",
    ),
    Symbol("vllm.v1.core.block_pool", "BlockPool.__init__", "self num_gpu_blocks", "blocks num_gpu_blocks"),
    Symbol("vllm.v1.core.block_pool", "BlockPool.touch", "self blocks", "ref_cnt"),
    Symbol("vllm.v1.core.block_pool", "BlockPool.free_blocks", "self ordered_blocks", "ref_cnt"),
    Symbol("vllm.v1.core.block_pool", "BlockPool.get_num_free_blocks", "self"),
)  # fmt: skip


@dataclass(slots=True)
class Standing:
    """What was decided in this process; endpoints.py tells it."""

    mode: MigrationMode = MigrationMode.RESUME
    reason: str = "the plugin was not asked"
    takes_outputs: bool = False  # this process, the API server, checks what comes back as outputs


STANDING: Final = Standing()


def activate(refusal: str, environment: Mapping[str, str] = os.environ) -> None:
    """Decide, and patch vLLM's arguments if KV is to be carried; EngineError if it must and cannot.

    `refusal`: why vLLM's version is not one that the plugin knows, or nothing.
    """
    mode = asked(environment)
    if mode is MigrationMode.RESUME:
        STANDING.mode, STANDING.reason = mode, f"{VARIABLE} is Resume"
        return
    reason = refusal or "; ".join(differences(SYMBOLS))
    if not reason and mode is MigrationMode.AUTO and not import_module("vllm.platforms").current_platform.is_cpu():
        reason = f"never measured on this platform; {VARIABLE}=Live carries KV all the same"
    if reason and mode is MigrationMode.LIVE:
        raise EngineError(f"{VARIABLE}=Live: {reason}; choose a vLLM that was tested, or Auto or Resume")
    if reason:
        _LOG.warning("medley: KV is not carried: %s", reason)
        STANDING.mode, STANDING.reason = MigrationMode.RESUME, reason
        return
    STANDING.mode, STANDING.reason = mode, ""
    _install()


def asked(environment: Mapping[str, str]) -> MigrationMode:
    """Return the mode that the environment asks for; without the variable nothing is carried."""
    text = environment.get(VARIABLE, MigrationMode.RESUME)
    try:
        return MigrationMode(text)
    except ValueError:
        raise InvalidInputError(VARIABLE, f"expected {', '.join(MigrationMode)}, got {text!r}") from None


def _install() -> None:
    arguments = import_module("vllm.engine.arg_utils").EngineArgs
    if not getattr(arguments, _INSTALLED, False):
        arguments.create_engine_config = _connecting(arguments.create_engine_config)
        setattr(arguments, _INSTALLED, True)


def _connecting(original: Any) -> Any:
    @wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.kv_transfer_config is None:
            self.kv_transfer_config = import_module("vllm.config").KVTransferConfig(
                kv_connector=_CONNECTOR,
                kv_connector_module_path="medley.engine.kv.connector",
                kv_role="kv_both",
                kv_load_failure_policy="recompute",  # vLLM's default fails the request
                kv_connector_extra_config={"mode": str(STANDING.mode)},
            )
        elif self.kv_transfer_config.kv_connector != _CONNECTOR:
            reason = "--kv-transfer-config names another connector"
            if STANDING.mode is MigrationMode.LIVE:
                raise EngineError(f"{VARIABLE}=Live: {reason}; remove it, or choose Auto or Resume")
            STANDING.mode, STANDING.reason = MigrationMode.RESUME, reason
        return original(self, *args, **kwargs)

    return create_engine_config
