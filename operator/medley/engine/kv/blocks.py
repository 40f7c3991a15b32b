"""Access to one worker's paged KV cache as pieces of memory, in the order in which they go over the wire.

`HostBlocks` lends the cache itself: sockets send from it and receive into it. `staged.StagedBlocks` does the same for a
cache on an accelerator. Made by the connector when vLLM registers the cache; used by `server` and `puller` from
threads of their own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medley.engine.kv.layout import Geometry, Shard, runs

Bytes = NDArray[np.uint8]  # [blocks, heads, bytes of one head's positions]


class Blocks(Protocol):
    """One worker's part of the cache."""

    shard: Shard
    geometry: Geometry

    def reading(self, part: Shard, blocks: Sequence[int]) -> Iterator[memoryview]:
        """Yield the bytes of a part of the shard; each piece is valid until the next one is asked for."""
        ...

    def writing(self, part: Shard, blocks: Sequence[int]) -> Generator[memoryview, None, None]:
        """Yield memory to fill; asking for the next piece says that this one is full. All is in place at the end."""
        ...


class HostBlocks:
    """A cache in the memory of this process."""

    def __init__(self, shard: Shard, geometry: Geometry, layers: Mapping[str, Bytes]) -> None:
        self.shard, self.geometry = shard, geometry
        self._layers = layers
        for name, array in layers.items():
            if not array[0].flags.c_contiguous:
                raise ValueError(f"{name}: expected the heads and positions of a block in one piece")

    def regions(self) -> list[tuple[int, int]]:
        """Return the whole cache as (address, bytes)."""
        return [(layer.ctypes.data, layer.nbytes) for layer in self._layers.values()]

    def reading(self, part: Shard, blocks: Sequence[int]) -> Iterator[memoryview]:
        """Yield pieces of the cache itself."""
        lo = part.head_lo - self.shard.head_lo
        whole = part.head_n == self.shard.head_n
        for name in part.layers:
            layer = self._layers[name]
            if whole and layer.flags.c_contiguous:
                for first, count in runs(blocks):
                    yield memoryview(layer[first : first + count].reshape(-1))
            else:
                for block in blocks:
                    yield memoryview(layer[block, lo : lo + part.head_n].reshape(-1))

    def writing(self, part: Shard, blocks: Sequence[int]) -> Generator[memoryview, None, None]:
        """Yield pieces of the cache itself."""
        yield from self.reading(part, blocks)


def host_bytes(tensor: Any) -> Bytes:
    """Return a tensor [blocks, heads, positions, content] of the CPU as bytes of the same memory."""
    import torch  # noqa: PLC0415 - only inside vLLM

    flat = tensor.flatten(2) if tensor[0].is_contiguous() else None
    if flat is None or flat.data_ptr() != tensor.data_ptr():
        raise ValueError("expected the heads and positions of a block in one piece")
    array: Bytes = flat.view(torch.uint8).numpy()
    return array
