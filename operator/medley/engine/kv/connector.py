"""vLLM's KV connector: two halves behind one class, because vLLM wants it so. Named to vLLM by `activation`.

vLLM makes one in the engine core (role SCHEDULER) and one in each worker (role WORKER) and calls each only for its own
half of the interface. All loads are asynchronous: the request waits, the model goes on stepping.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.metrics.cache_hit_source import CacheHitSource
from vllm.v1.request import Request

from medley.core.service import MigrationMode
from medley.engine.kv.puller import Load
from medley.engine.kv.scheduler_half import SchedulerHalf
from medley.engine.kv.worker_half import WorkerFacts, WorkerHalf

MODE_SETTING = "mode"  # in kv_connector_extra_config


@dataclass
class Loads(KVConnectorMetadata):
    """What the scheduler tells the workers in one step."""

    loads: tuple[Load, ...] = ()


class MedleyConnector(KVConnectorBase_V1, SupportsHMA):
    """Carries requests between engines."""

    _cache_hit_source = CacheHitSource.P2P

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        mode = MigrationMode(self._kv_transfer_config.kv_connector_extra_config.get(MODE_SETTING, MigrationMode.AUTO))
        self._scheduler = (
            SchedulerHalf(vllm_config, kv_cache_config, mode) if role is KVConnectorRole.SCHEDULER else None
        )
        if role is KVConnectorRole.SCHEDULER:
            import_module("medley.engine.kv.utilities").install()  # it imports this module
        self._worker = WorkerHalf(vllm_config) if role is KVConnectorRole.WORKER else None

    @property
    def scheduler(self) -> SchedulerHalf:
        """The half in the engine core."""
        assert self._scheduler is not None
        return self._scheduler

    @property
    def worker(self) -> WorkerHalf:
        """The half in a worker."""
        assert self._worker is not None
        return self._worker

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing that this connector does must succeed."""
        return False

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        """Blocks with each head's positions in one piece: what any number of ranks can divide."""
        return None if vllm_config.model_config is None or vllm_config.model_config.use_mla else "LBHNC"

    # In the engine core

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        """Take the block tables; called once, when the scheduler is made."""
        super().bind_kv_cache_manager(kv_cache_manager)
        self.scheduler.bind(kv_cache_manager)

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Take what the workers said; called once, when all have their caches."""
        self.scheduler.meet([facts for _, facts in sorted(metadata.items()) if isinstance(facts, WorkerFacts)])

    def on_new_request(self, request: Request) -> None:
        """Look at a request; called once for each."""
        self.scheduler.arrived(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Return what can be loaded; called whenever a request without computed tokens is tried."""
        tokens = self.scheduler.matched(request, num_computed_tokens)
        return tokens, tokens > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Plan a load; called when a request got blocks."""
        self.scheduler.allocated(request, blocks.get_block_ids()[0] if num_external_tokens else (), num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Loads:  # noqa: ARG002 - vLLM's signature
        """Return what the workers shall load; called in every step."""
        return Loads(self.scheduler.loads())

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, None]:  # noqa: ARG002
        """Forget a request, however it ended; its blocks may go, pins hold their own reference."""
        self.scheduler.over(request.request_id)
        return False, None

    def request_finished_all_groups(self, request: Request, block_ids: tuple[list[int], ...]) -> tuple[bool, None]:  # noqa: ARG002
        """Forget a request; called in place of `request_finished`."""
        self.scheduler.over(request.request_id)
        return False, None

    # In a worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Take the cache of each layer; called once."""
        self.worker.register(kv_caches)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """Say what the engine core must know; called once, after the caches are registered."""
        return self.worker.facts()

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """Take what this step shall load; called in every step, before the model runs.

        On the host loads begin here: `start_load_kv` comes when the model has been launched, which on a CPU is when the
        step is over, and a load that begins then holds its request up for one step more. On an accelerator launching
        takes no time, and new blocks may still be on their way to be zeroed before.
        """
        super().bind_connector_metadata(connector_metadata)
        if self.worker.on_host:
            self._begin()

    def start_load_kv(self, forward_context: Any, **_kwargs: Any) -> None:  # noqa: ARG002 - vLLM's signature
        """Start loads into an accelerator's cache; called in every step."""
        if not self.worker.on_host:
            self._begin()

    def _begin(self) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        self.worker.begin(metadata.loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: a request runs only when its load is over."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing to save: others read."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return which loads ended; called in every step."""
        return self.worker.results(finished_req_ids)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Do as the base class does; vLLM asks `get_transfer_results`, which also says what failed."""
        results = self.worker.results(finished_req_ids)
        return results.finished_sending or None, results.finished_recving or None

    def shutdown(self) -> None:
        """End what runs; called when the process ends."""
        if self._scheduler is not None:
            self._scheduler.close()
        if self._worker is not None:
            self._worker.close()
