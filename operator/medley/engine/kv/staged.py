"""A KV cache on an accelerator: gathered into, and scattered from, pinned memory of the host.

Its layout is tested on the CPU; it was never run on a GPU, and nothing about its speed is measured. The copies run on a
stream of their own, so that they wait for no forward pass; two buffers let one be sent while the other is filled.
Reading needs no order with the model's stream: what an export names was written by steps that are over, and is not
written again. Writing is complete on the device before the last piece is taken, so before vLLM hears of it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from typing import Final

import torch

from medley.engine.kv.layout import Geometry, Shard
from medley.engine.kv.messages import slice_bytes

_BUFFER_BYTES: Final = 4 << 20  # of each staging buffer, at least one block


class StagedBlocks:
    """Blocks of tensors [blocks, heads, positions, content] on any device."""

    def __init__(
        self,
        shard: Shard,
        geometry: Geometry,
        layers: Mapping[str, torch.Tensor],
        *,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self.shard, self.geometry = shard, geometry
        self._layers = layers
        self._device = next(iter(layers.values())).device
        self._on_gpu = self._device.type == "cuda"
        self._buffer_bytes = max(buffer_bytes, slice_bytes(geometry, shard.head_n))
        self._idle: SimpleQueue[_Staging] = SimpleQueue()  # pinning memory takes milliseconds: buffers are kept

    def reading(self, part: Shard, blocks: Sequence[int]) -> Iterator[memoryview]:
        """Yield staging memory; the next piece is gathered while this one is sent."""
        staging = [self._staging(), self._staging()]
        try:
            ready: tuple[_Staging, memoryview] | None = None
            for turn, (name, some) in enumerate(self._portions(part, blocks)):
                gathering = staging[turn % 2]
                piece = gathering.gather(self._layers[name], some, part.head_lo - self.shard.head_lo, part.head_n)
                if ready is not None:
                    ready[0].wait()
                    yield ready[1]
                ready = (gathering, piece)
            if ready is not None:
                ready[0].wait()
                yield ready[1]
        finally:
            self._give_back(staging)

    def writing(self, part: Shard, blocks: Sequence[int]) -> Generator[memoryview, None, None]:
        """Yield staging memory; it is scattered while the next piece is received."""
        staging = [self._staging(), self._staging()]
        try:
            for turn, (name, some) in enumerate(self._portions(part, blocks)):
                filling = staging[turn % 2]
                filling.wait()  # until what it held before is on the device
                yield filling.piece(self._layers[name], len(some), part.head_n)
                filling.scatter(self._layers[name], some, part.head_lo - self.shard.head_lo, part.head_n)
            for each in staging:
                each.wait()
        finally:
            self._give_back(staging)

    def _portions(self, part: Shard, blocks: Sequence[int]) -> Iterator[tuple[str, Sequence[int]]]:
        at_once = max(1, self._buffer_bytes // slice_bytes(self.geometry, part.head_n))
        for name in part.layers:
            for first in range(0, len(blocks), at_once):
                yield name, blocks[first : first + at_once]

    def _staging(self) -> _Staging:
        try:
            return self._idle.get_nowait()
        except Empty:
            return _Staging(self._buffer_bytes, self._device if self._on_gpu else None)

    def _give_back(self, staging: Sequence[_Staging]) -> None:
        for each in staging:
            each.wait()
            self._idle.put(each)


class _Staging:
    """One buffer of the host, and the stream that fills and empties it."""

    def __init__(self, size: int, gpu: torch.device | None) -> None:
        self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=gpu is not None)
        self._stream = torch.cuda.Stream(gpu) if gpu is not None else None
        self._done = torch.cuda.Event() if gpu is not None else None

    def gather(self, layer: torch.Tensor, blocks: Sequence[int], head: int, heads: int) -> memoryview:
        with self._context():
            chosen = torch.tensor(blocks, dtype=torch.long, device=layer.device)
            gathered = layer[:, head : head + heads].index_select(0, chosen)
            self._like(gathered).copy_(gathered, non_blocking=True)
            self._record()
        return self.piece(layer, len(blocks), heads)

    def scatter(self, layer: torch.Tensor, blocks: Sequence[int], head: int, heads: int) -> None:
        with self._context():
            chosen = torch.tensor(blocks, dtype=torch.long, device=layer.device)
            shape = (len(blocks), heads, *layer.shape[2:])
            host = self._bytes[: self._size(layer, len(blocks), heads)].view(layer.dtype).view(shape)
            layer[:, head : head + heads].index_copy_(0, chosen, host.to(layer.device, non_blocking=True))
            self._record()

    def piece(self, layer: torch.Tensor, blocks: int, heads: int) -> memoryview:
        return memoryview(self._bytes.numpy())[: self._size(layer, blocks, heads)]

    def wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()

    def _like(self, gathered: torch.Tensor) -> torch.Tensor:
        size = gathered.numel() * gathered.element_size()
        return self._bytes[:size].view(gathered.dtype).view(gathered.shape)

    def _context(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _record(self) -> None:
        if self._done is not None:
            self._done.record()

    @staticmethod
    def _size(layer: torch.Tensor, blocks: int, heads: int) -> int:
        return int(blocks * heads * layer[0, 0].numel() * layer.element_size())
