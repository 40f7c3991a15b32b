"""The connector in the engine core: exports running requests, and plans what arriving ones load. For connector.py.

Everything happens in the engine's main thread, between its steps, but for the pin server's question whether an export
is held. A request's blocks are pinned by their reference count: whatever becomes of the request, they stay.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from vllm.config import VllmConfig
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from medley.core.errors import EngineError
from medley.core.service import MigrationMode
from medley.engine.kv.alarm import Alarm
from medley.engine.kv.identity import numerics_digest
from medley.engine.kv.incoming import Identity, RefusedError, accepted, exportable, load, worth
from medley.engine.kv.leases import Export, Leases
from medley.engine.kv.messages import grant
from medley.engine.kv.network import Network
from medley.engine.kv.puller import Load
from medley.engine.kv.server import Holder, pin_answers
from medley.engine.kv.suitability import numerics, obstacle
from medley.engine.kv.weights import weights_digest
from medley.engine.kv.worker_half import WorkerFacts
from medley.engine.plugin.resume import committed_ids, is_installed
from medley.wire.ticket import ITEM_BYTES, Held, KvState, Pins, Source, Ticket, history_digest

_LOG: Final = logging.getLogger("vllm.medley.kv")
_LOAD_S: Final = 120.0  # afterwards a request is computed instead
_EXTERNAL: Final = re.compile(r"^(?:generate-tokens-)?(?P<id>.+)-[0-9a-f]{8}$")  # vLLM adds the rest to our name


class SchedulerHalf:
    """One engine core's exports and loads."""

    def __init__(self, config: VllmConfig, caches: KVCacheConfig, mode: MigrationMode) -> None:
        self._config, self._mode = config, mode
        self._obstacle = obstacle(config, caches)
        self._identity: Identity | None = None
        self._workers: tuple[WorkerFacts, ...] = ()
        self._manager: KVCacheManager | None = None
        self._leases = Leases()
        self._pins: Pins | None = None
        self._holder: Holder | None = None
        self._alarm: Alarm | None = None
        self._tickets: dict[str, Ticket] = {}  # of requests that have not loaded yet
        self._loads: list[Load] = []  # for the next step
        self._cached: dict[str, int] = {}  # tokens found here, of resumed requests that are being scheduled

    # What vLLM tells at start

    def bind(self, manager: KVCacheManager) -> None:
        """Take the block tables."""
        self._manager = manager

    def meet(self, workers: Sequence[WorkerFacts]) -> None:
        """Take the workers' facts; EngineError if they have an obstacle and the mode is Live."""
        network = Network.from_environment()
        self._workers = tuple(workers)
        geometries = {each.geometry for each in workers}
        self._obstacle = self._obstacle or next((each.obstacle for each in workers if each.obstacle), network.obstacle)
        if not self._obstacle and len(geometries) != 1:
            self._obstacle = "workers with caches of different shapes cannot be carried yet"
        geometry = next(iter(geometries), None)
        model = None if self._obstacle else weights_digest(self._config.model_config)
        if not self._obstacle and model is None:
            self._obstacle = "the weights' files are not on this machine: engines cannot know that they have the same"
        if not self._obstacle and geometry is not None and model is not None:
            facts = numerics(self._config, {each.backend for each in workers})
            self._identity = Identity(geometry, numerics_digest(facts), model)
            answers = pin_answers(self._leases.holds)
            self._holder = Holder(network.listen, answers, network.keyring, stall_s=network.stall_s)
            self._pins = Pins(host=network.host, port=self._holder.port)
            _LOG.info("medley: KV is carried; %d workers, %s, pins on %s", len(workers), geometry, self._pins)
        elif self._mode is MigrationMode.LIVE:
            raise EngineError(f"MEDLEY_MIGRATION=Live: {self._obstacle}; choose Auto or Resume to start without")
        else:
            _LOG.warning("medley: KV is not carried: %s", self._obstacle)

    # Exports, called by utilities.py

    def export(self, requests: Iterable[Request], lease_s: float, wake: Callable[[], None]) -> tuple[Ticket, ...]:
        """Pin the blocks of requests and return a ticket for each. `wake` lets `expire` be called by an idle engine."""
        if self._alarm is None:
            self._alarm = Alarm(wake, time.monotonic)
        tickets = tuple(self._ticket(request, lease_s) for request in requests)
        self._set_alarm()
        return tickets

    def renew(self, export_ids: Sequence[str], lease_s: float) -> Held:
        """Let exports live on."""
        now = time.monotonic()
        there, gone = self._leases.renew(export_ids, now + lease_s, now)
        self._set_alarm()
        return Held(exports=there, unknown=gone)

    def release(self, export_ids: Sequence[str]) -> Held:
        """Give exports' blocks back."""
        there, gone, blocks = self._leases.release(export_ids, time.monotonic())
        self._free(blocks)
        return Held(exports=there, unknown=gone)

    def expire(self) -> None:
        """Give back the blocks of exports whose lease is over."""
        over = self._leases.expire(time.monotonic())
        if over:
            _LOG.warning("medley: %d exports ran out and were given back", len(over))
        self._free(over)
        self._set_alarm()

    def state(self) -> KvState:
        """Return what is."""
        if self._identity is None or self._manager is None:
            return KvState(mode=MigrationMode.RESUME, capable=False, reason=self._obstacle)
        pool, geometry = self._manager.block_pool, self._identity.geometry
        shards = {each.shard for each in self._workers}  # ranks that repeat heads count once
        per_head = geometry.content * ITEM_BYTES[geometry.dtype]
        return KvState(
            mode=self._mode,
            capable=True,
            takes_outputs=is_installed(),
            numerics=self._identity.numerics,
            block_size=geometry.block_size,
            bytes_per_token=per_head * sum(len(each.layers) * each.head_n for each in shards),
            total_blocks=pool.num_gpu_blocks - 1,  # one is vLLM's own
            free_blocks=pool.get_num_free_blocks(),
            pinned_blocks=self._leases.pinned(),
            exports=len(self._leases),
        )

    # What the scheduler asks, in this order for each request

    def arrived(self, request: Request) -> None:
        """Look at a new request's ticket; whatever is wrong with it, the request is computed."""
        if self._identity is None:
            return
        try:
            ticket = accepted(request.kv_transfer_params, self._identity)
            if ticket is not None:
                _check_history(ticket, request)
                self._tickets[request.request_id] = ticket
        except RefusedError as refused:
            _LOG.warning("medley: %s is computed, not carried: %s", request.request_id, refused)

    def matched(self, request: Request, here: int) -> int:
        """Return how many tokens can be loaded beyond the `here` that are cached."""
        ticket = self._tickets.get(request.request_id)
        if committed_ids(request.sampling_params):
            self._cached[request.request_id] = here
            # Of a load that failed. With them vLLM asserts that no more than the prompt is cached, and would end here.
            request.prefill_stats = None
        return 0 if ticket is None else worth(ticket, tokens=request.num_tokens, here=here)

    def allocated(self, request: Request, blocks: Sequence[int], taken: int) -> None:
        """Plan a load into blocks that were allocated for `taken` tokens."""
        self._count(request, taken)
        ticket = self._tickets.pop(request.request_id, None)  # once: after a failure it is computed
        if ticket is not None and taken:
            self._loads.append(
                load(ticket, request.request_id, blocks, tokens=request.num_tokens, taken=taken, within_s=_LOAD_S)
            )

    def loads(self) -> tuple[Load, ...]:
        """Return what the workers shall load in the next step."""
        end = self._leases.next_end()
        if end is not None and end <= time.monotonic():
            self.expire()
        loads, self._loads = tuple(self._loads), []
        return loads

    def over(self, request_id: str) -> None:
        """Forget a request."""
        self._tickets.pop(request_id, None)
        self._cached.pop(request_id, None)

    def close(self) -> None:
        """Stop answering and ringing."""
        if self._holder is not None:
            self._holder.close()
        if self._alarm is not None:
            self._alarm.close()

    def _set_alarm(self) -> None:
        if self._alarm is not None:  # there is none before the first export
            self._alarm.set(self._leases.next_end())

    def _ticket(self, request: Request, lease_s: float) -> Ticket:
        assert self._identity is not None, "utilities.py asks for the state first"
        assert self._manager is not None
        loading = request.status == RequestStatus.WAITING_FOR_REMOTE_KVS or request.prompt_embeds is not None
        valid = exportable(
            computed=request.num_computed_tokens,
            in_flight=request.num_in_flight_tokens,
            tokens=request.num_tokens,
            loading=loading,
        )
        blocks: tuple[int, ...] = ()
        if valid:
            (found,) = self._manager.get_block_ids_for_computed_tokens(request.request_id, valid)
            blocks = tuple(found)
        export_id = secrets.token_hex(16)
        geometry = self._identity.geometry
        ticket = Ticket(
            export_id=export_id,
            request_id=external_id(request.request_id),
            valid_tokens=valid,
            tokens=history_digest(request.all_token_ids[:valid], _extras(request, valid)),
            block_size=geometry.block_size,
            blocks=blocks,
            dtype=geometry.dtype,
            content=geometry.content,
            numerics=self._identity.numerics,
            model=self._identity.model,
            lease_s=lease_s,
            pins=self._pins if valid else None,
            sources=tuple(_source(each, export_id, blocks) for each in self._workers) if valid else (),
        )
        if valid:
            pool = self._manager.block_pool
            pool.touch([pool.blocks[block] for block in blocks])
            self._leases.add(export_id, Export(blocks, time.monotonic() + lease_s))
        return ticket

    def _free(self, exports: Iterable[Sequence[int]]) -> None:
        assert self._manager is not None
        pool = self._manager.block_pool
        for blocks in exports:
            pool.free_blocks([pool.blocks[block] for block in reversed(blocks)])  # the last are the least worth

    def _count(self, request: Request, taken: int) -> None:
        """Let vLLM's counters tell where a resumed request's tokens came from: vLLM counts prompts only."""
        here = self._cached.pop(request.request_id, None)
        if here is not None and len(committed_ids(request.sampling_params)) == request.num_output_tokens:
            request.prefill_stats = PrefillStats()
            request.prefill_stats.set(request.num_tokens, here, taken)


def external_id(request_id: str) -> str:
    """Return what the router called a request that vLLM knows as `request_id`."""
    found = _EXTERNAL.match(request_id)
    return found["id"] if found else request_id


def _source(facts: WorkerFacts, export_id: str, blocks: Sequence[int]) -> Source:
    return Source(
        host=facts.host,
        port=facts.port,
        pp=facts.pp,
        tp=facts.tp,
        layers=facts.shard.layers,
        head_lo=facts.shard.head_lo,
        head_n=facts.shard.head_n,
        grant=grant(facts.secret, export_id, blocks),
    )


def _check_history(ticket: Ticket, request: Request) -> None:
    if ticket.valid_tokens > request.num_tokens or request.prompt_embeds is not None:
        raise RefusedError(f"valid_tokens: {ticket.valid_tokens} of a request of {request.num_tokens}")
    extras = _extras(request, ticket.valid_tokens)
    if ticket.tokens != history_digest(request.all_token_ids[: ticket.valid_tokens], extras):
        raise RefusedError("tokens: the ticket is of another request, or the request was resumed with other tokens")


def _extras(request: Request, valid: int) -> list[str]:
    """Return what the KV of a request's first tokens depends on besides the tokens."""
    adapter = request.lora_request
    extras = [] if adapter is None else [f"adapter {adapter.lora_name} {adapter.lora_path}"]
    return extras + [
        f"{feature.modality} {feature.identifier} {feature.mm_position.offset}"
        for feature in request.mm_features
        if feature.mm_position.offset < valid
    ]
