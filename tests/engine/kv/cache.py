"""Caches of engines that exist only here, filled so that every byte tells where it belongs, and a way between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from medley.engine.kv.blocks import HostBlocks
from medley.engine.kv.connections import Connections
from medley.engine.kv.layout import Geometry, Shard, shard
from medley.engine.kv.messages import Answer, PinQuery, ReadRequest, Remote, grant, parse_answer, slice_bytes
from medley.wire.ticket import Source, Ticket, history_digest

GEOMETRY = Geometry(block_size=4, dtype="float16", content=6)
NUMERICS, MODEL = "1" * 64, "2" * 64
EXPORT = "export-1"

# What tests of a transport carry: blocks of a source's cache, the last three of which go into these of the target's.
HOST = "127.0.0.1"
BLOCKS = 12  # of each cache
GRANTED = (3, 4, 5, 9, 1)
INTO = (7, 8, 2)


def layers(count: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{index}.attn" for index in range(count))


def shards(*, layers_total: int, heads: int, tp: int, pp: int) -> list[Shard]:
    """What the workers of an engine hold, by pipeline and tensor rank, as vLLM divides a model."""
    names = layers(layers_total)
    bounds = [layers_total * stage // pp for stage in range(pp + 1)]
    return [
        shard(
            names[bounds[stage] : bounds[stage + 1]],
            heads_here=max(1, heads // tp),
            heads_total=heads,
            tp=rank,
            tp_size=tp,
        )
        for stage in range(pp)
        for rank in range(tp)
    ]


def tokens_of(layer: str, head: int, block: int) -> np.ndarray:
    """The bytes of one head of one layer in one block: a function of all three."""
    size = slice_bytes(GEOMETRY, 1)
    seed = abs(hash((layer, head, block))) % 2**32
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def empty(held: Shard, blocks: int) -> HostBlocks:
    size = slice_bytes(GEOMETRY, 1)
    return HostBlocks(held, GEOMETRY, {name: np.zeros((blocks, held.head_n, size), np.uint8) for name in held.layers})


def filled(held: Shard, blocks: int) -> HostBlocks:
    made = empty(held, blocks)
    for name in held.layers:
        for block in range(blocks):
            for head in range(held.head_n):
                made._layers[name][block, head] = tokens_of(name, held.head_lo + head, block)
    return made


def content(blocks: HostBlocks) -> dict[str, np.ndarray]:
    return blocks._layers


def assert_loaded(cache: HostBlocks) -> None:
    """What was wanted is where it was wanted, and nothing else was touched."""
    for name, array in content(cache).items():
        for block in range(BLOCKS):
            for head in range(cache.shard.head_n):
                wanted = (
                    tokens_of(name, cache.shard.head_lo + head, GRANTED[2 + INTO.index(block)])
                    if block in INTO
                    else np.zeros_like(array[block, head])
                )
                assert np.array_equal(array[block, head], wanted), (name, block, head)


@dataclass(frozen=True)
class Address:
    host: str
    port: int


def ticket(held_by: list[tuple[Shard, Address, bytes]], blocks: tuple[int, ...], pins: Address, **changes) -> Ticket:
    return Ticket(**{
        "export_id": EXPORT, "request_id": "r", "valid_tokens": len(blocks) * GEOMETRY.block_size,
        "tokens": history_digest([]), "block_size": GEOMETRY.block_size, "blocks": blocks, "dtype": GEOMETRY.dtype,
        "content": GEOMETRY.content, "numerics": NUMERICS, "model": MODEL, "lease_s": 30.0,
        "pins": {"host": pins.host, "port": pins.port},
        "sources": tuple(
            Source(
                host=at.host, port=at.port, pp=0, tp=index, layers=held.layers, head_lo=held.head_lo, head_n=held.head_n,
                grant=grant(secret, EXPORT, blocks),
            )
            for index, (held, at, secret) in enumerate(held_by)
        ),
    } | changes)  # fmt: skip


class InThread:
    """A `Reader` in the thread that asks, with no porter between."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def ask(self, host: str, port: int, question: PinQuery) -> Answer:
        """Ask over a connection that is kept."""
        with self._connections.to(host, port) as connection:
            connection.send(question)
            return parse_answer(connection.receive())

    def read(  # noqa: PLR0917 - one call in one place
        self,
        host: str,
        port: int,
        question: ReadRequest,
        size: int,
        into: Iterator[memoryview],
        check: Callable[[], None],
    ) -> int | Remote | Answer:
        """Receive into the cache itself."""
        with self._connections.to(host, port) as connection:
            connection.send(question)
            answer = parse_answer(connection.receive())
            if answer.ok and answer.remote is not None:
                return answer.remote
            if answer.ok and answer.bytes_total == size:
                return connection.fill_pieces(into, check)
            if answer.ok and answer.bytes_total:
                raise ConnectionError(f"{answer.bytes_total} bytes are offered, {size} were asked for")
            return answer

    def close(self) -> None:
        """Close what is kept."""
        self._connections.close()
