"""Run by test_staged.py in vLLM's Python, which has torch: staging gives and takes the same bytes as the cache itself."""

from __future__ import annotations

import itertools
import random
import sys

import torch

from medley.engine.kv.blocks import HostBlocks, host_bytes
from medley.engine.kv.layout import Geometry, Shard
from medley.engine.kv.staged import StagedBlocks

NAMES, BLOCKS, HEADS = ("a", "b", "c"), 9, 4


def cache(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    shape = (BLOCKS, HEADS, 8, 6)
    return {
        name: torch.randint(0, 255, shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        for name in NAMES
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in NAMES)


def main() -> None:
    chance = random.Random(1)
    cases = itertools.product((torch.float32, torch.bfloat16, torch.float16), (1, 500, 1 << 20), range(12))
    for dtype, buffer_bytes, _ in cases:
        geometry, held = Geometry(8, str(dtype).removeprefix("torch."), 6), Shard(NAMES, 4, HEADS)
        source, by_host, by_staging = cache(dtype), cache(dtype), {}
        by_staging = {name: tensor.clone() for name, tensor in by_host.items()}
        lo = chance.randrange(HEADS)
        part = Shard(tuple(chance.sample(NAMES, chance.randint(1, 3))), 4 + lo, chance.randint(1, HEADS - lo))
        blocks = chance.sample(range(BLOCKS), chance.randint(1, BLOCKS))
        into = chance.sample(range(BLOCKS), len(blocks))
        host = HostBlocks(held, geometry, {name: host_bytes(tensor) for name, tensor in source.items()})
        staged = StagedBlocks(held, geometry, source, buffer_bytes=buffer_bytes)
        sent = b"".join(bytes(piece) for piece in host.reading(part, blocks))
        assert b"".join(bytes(piece) for piece in staged.reading(part, blocks)) == sent
        targets = (
            HostBlocks(held, geometry, {name: host_bytes(tensor) for name, tensor in by_host.items()}),
            StagedBlocks(held, geometry, by_staging, buffer_bytes=buffer_bytes),
        )
        for target in targets:
            at = 0
            for piece in target.writing(part, into):
                piece[:] = sent[at : at + len(piece)]
                at += len(piece)
            assert at == len(sent)
        assert same(by_host, by_staging)
        heads = slice(lo, lo + part.head_n)
        for name in part.layers:
            assert torch.equal(by_host[name][into, heads], source[name][blocks, heads])
    try:
        host_bytes(torch.zeros(3, 4, 8, 6).transpose(1, 2))
    except ValueError as refused:
        sys.stdout.write(str(refused))


main()
