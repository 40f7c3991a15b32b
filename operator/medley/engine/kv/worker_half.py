"""The connector in a worker process: serves this worker's blocks, and loads into them. Called by connector.py.

vLLM calls it from the thread that steps the model; nothing here waits for a socket.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata, KVConnectorTransferResults
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from medley.engine.kv.blocks import Blocks, HostBlocks, host_bytes
from medley.engine.kv.errands import Errands
from medley.engine.kv.layout import Geometry, Shard, shard
from medley.engine.kv.network import Network
from medley.engine.kv.puller import Load, Puller
from medley.engine.kv.server import block_answers
from medley.wire.ticket import ITEM_BYTES

TRANSPORT_VARIABLE: Final = "MEDLEY_KV_TRANSPORT"  # tcp, or nixl
_RDMA: Final = Path("/sys/class/infiniband")
_LOG: Final = logging.getLogger("vllm.medley.kv")


@dataclass
class WorkerFacts(KVConnectorHandshakeMetadata):
    """What a worker tells the engine core when its cache is there."""

    host: str
    port: int
    pp: int
    tp: int
    shard: Shard
    geometry: Geometry | None
    backend: str
    secret: bytes
    obstacle: str  # why this worker's cache cannot be carried; empty: it can


class WorkerHalf:
    """One worker's server and loads."""

    def __init__(self, config: VllmConfig) -> None:
        self.on_host = True  # the cache is, once it is registered
        self._config = config
        self._network = Network.from_environment()
        self._puller: Puller | None = None
        self._facts: WorkerFacts | None = None
        self._unknown: list[Load] = []  # asked for although this worker has no cache to load into

    def register(self, caches: Mapping[str, Any]) -> None:
        """Take the cache that vLLM allocated, and serve it."""
        tp, tp_size, pp = get_tp_group().rank_in_group, get_tp_group().world_size, get_pp_group().rank_in_group
        self.on_host = all(tensor.device.type == "cpu" for tensor in caches.values())
        secret = secrets.token_bytes(32)
        obstacle, geometry, port = "", None, 1
        held = Shard(tuple(caches), 0, 1)
        try:
            if self._network.obstacle:
                raise ValueError(self._network.obstacle)  # noqa: TRY301 - one way out for all obstacles
            geometry, heads = self._geometry(caches)
            total = self._config.model_config.get_total_num_kv_heads()
            held = shard(tuple(caches), heads_here=heads, heads_total=total, tp=tp, tp_size=tp_size)
            blocks = self._blocks(held, geometry, caches)
            network, direct = self._network, _direct(blocks)
            answers = block_answers(blocks, secret, None if direct is None else direct.offer)
            errands = Errands(network.listen, answers, lasting=self.on_host, aside=self.on_host)
            self._puller = Puller(blocks, errands, rank=tp, fetcher=direct)
            port = errands.port
        except (ValueError, OSError) as error:
            obstacle = str(error)
        backends = get_layers_from_vllm_config(self._config, AttentionLayerBase, list(caches))
        names = sorted(
            {f"{layer.get_attn_backend().get_name()}{getattr(layer, 'isa', '')}" for layer in backends.values()}
        )
        self._facts = WorkerFacts(self._network.host, port, pp, tp, held, geometry, " ".join(names), secret, obstacle)

    def facts(self) -> WorkerFacts | None:
        """Return what the engine core must know."""
        return self._facts

    def begin(self, loads: Iterable[Load]) -> None:
        """Start loads; they go on while the model steps."""
        for each in loads:
            if self._puller is None:
                self._unknown.append(each)
            else:
                self._puller.begin(each)

    def results(self, over: Iterable[str]) -> KVConnectorTransferResults:
        """Return which loads ended, and how; `over` are requests that need theirs no more."""
        found = KVConnectorTransferResults()
        for each in self._unknown:
            found.finished_recving.add(each.request_id)
            found.failed_recving.add(each.request_id)
        self._unknown.clear()
        if self._puller is None:
            return found
        for request_id in over:
            self._puller.cancel(request_id)
        for ended in self._puller.ended():
            found.finished_recving.add(ended.request_id)
            if ended.fault:
                found.failed_recving.add(ended.request_id)
                _LOG.warning("medley: %s is computed, not carried: %s", ended.request_id, ended.fault)
            else:
                _LOG.info(
                    "medley: carried %s: %.2f MB in %.1f ms, %.2f MB of it by NIXL",
                    ended.request_id, ended.bytes_read / 1e6, ended.seconds * 1e3, ended.bytes_fetched / 1e6,
                )  # fmt: skip
        return found

    def close(self) -> None:
        """Stop serving and loading."""
        if self._puller is not None:
            self._puller.close()

    def _geometry(self, caches: Mapping[str, Any]) -> tuple[Geometry, int]:
        """Return what all layers here agree on, and their heads; ValueError if they do not."""
        shapes = {(tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")) for tensor in caches.values()}
        if len(shapes) != 1:
            raise ValueError(f"layers of {len(shapes)} different shapes cannot be carried yet")
        shape, dtype = shapes.pop()
        size = self._config.cache_config.block_size
        if len(shape) != 3 or shape[1] != size or dtype not in ITEM_BYTES:  # noqa: PLR2004 - heads, positions, content
            raise ValueError(f"a cache of {shape} {dtype} with blocks of {size} tokens cannot be carried yet")
        heads, positions, content = shape
        return Geometry(positions, dtype, content), heads

    def _blocks(self, held: Shard, geometry: Geometry, caches: Mapping[str, Any]) -> Blocks:
        if self.on_host:
            return HostBlocks(held, geometry, {name: host_bytes(tensor) for name, tensor in caches.items()})
        from medley.engine.kv.staged import StagedBlocks  # noqa: PLC0415 - only where there is a device

        return StagedBlocks(held, geometry, caches)


def _direct(blocks: Blocks) -> Any:
    """Return the memory that others may fetch from by themselves, None if all goes by TCP; ValueError says why not."""
    wanted = os.environ.get(TRANSPORT_VARIABLE, "tcp")
    if wanted == "tcp":
        return None
    if wanted != "nixl":
        raise ValueError(f"{TRANSPORT_VARIABLE}: expected tcp or nixl, got {wanted!r}")
    if not isinstance(blocks, HostBlocks):
        raise ValueError(f"{TRANSPORT_VARIABLE}=nixl: not written for caches on accelerators; choose tcp")  # noqa: TRY004
    if not _RDMA.is_dir() or not any(_RDMA.iterdir()):
        _LOG.warning(
            "medley: no RDMA here: NIXL goes to other machines by TCP, and UCX may end this worker with its reader"
        )
    try:
        return import_module("medley.engine.kv.direct").DirectMemory(blocks.regions())
    except (ImportError, OSError) as error:
        raise ValueError(f"{TRANSPORT_VARIABLE}=nixl: {error}; install the package nixl 1.5, or choose tcp") from error
