"""Which slices of a KV cache a worker holds, and from whom another engine's workers get theirs; pure.

A slice is one layer's heads [lo, lo + n). Layers are matched by name and heads by their index in the whole model, so
that any tensor and pipeline parallel sizes can read from any others. Called by the connector on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from medley.wire.ticket import Source, Ticket


@dataclass(frozen=True, slots=True)
class Shard:
    """What one worker holds: the same heads of each of its layers."""

    layers: tuple[str, ...]
    head_lo: int
    head_n: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """What all workers of an engine agree on, and two engines must to exchange blocks as they are."""

    block_size: int  # tokens
    dtype: str  # of an element, PyTorch's name
    content: int  # elements of one head at one position


@dataclass(frozen=True, slots=True)
class Pull:
    """Slices to read from one source worker."""

    source: int  # index in the ticket
    shard: Shard


class IncompleteError(Exception):
    """The sources do not hold all that is needed."""


def shard(layers: Sequence[str], *, heads_here: int, heads_total: int, tp: int, tp_size: int) -> Shard:
    """Return what tensor-parallel rank `tp` holds, when it has `heads_here` of the model's `heads_total` KV heads.

    With more ranks than heads vLLM repeats each head on tp_size / heads_total ranks in a row.
    """
    first = tp * heads_here if tp_size <= heads_total else tp * heads_total // tp_size
    return Shard(tuple(layers), first, heads_here)


def pulls(wanted: Shard, sources: Sequence[Source], *, turn: int = 0) -> tuple[Pull, ...]:
    """Return reads that give every slice of `wanted` exactly once; IncompleteError names what nobody has.

    Sources that hold the same are taken in turn: `turn`, the reader's rank, says with which to begin.
    """
    missing = {layer: {(wanted.head_lo, wanted.head_lo + wanted.head_n)} for layer in wanted.layers}
    found: list[Pull] = []
    for step in range(len(sources)):
        index = (turn + step) % len(sources)
        source = sources[index]
        held = frozenset(source.layers)
        for (lo, hi), layers in _common(missing, held, source.head_lo, source.head_lo + source.head_n).items():
            found.append(Pull(index, Shard(layers, lo, hi - lo)))
            for layer in layers:
                missing[layer] = _without(missing[layer], lo, hi)
    lost = sorted(layer for layer, ranges in missing.items() if ranges)
    if lost:
        lo, hi = min(missing[lost[0]])
        raise IncompleteError(
            f"no source holds heads {lo} to {hi - 1} of {lost[0]} ({len(lost)} layers are incomplete)"
        )
    return tuple(found)


def split(pull: Pull, parts: int) -> tuple[Pull, ...]:
    """Divide a read by layers into at most `parts`, as equal as they can be: one for each connection."""
    layers = pull.shard.layers
    count = max(1, min(parts, len(layers)))
    bounds = [len(layers) * part // count for part in range(count + 1)]
    return tuple(
        Pull(pull.source, Shard(layers[lo:hi], pull.shard.head_lo, pull.shard.head_n)) for lo, hi in pairwise(bounds)
    )


def runs(blocks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the stretches of consecutive block numbers as (first, count), in order: one piece of memory each."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and block == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return tuple(found)


def paired(
    left: Sequence[tuple[int, int]], right: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Cut two lists of (address, bytes) of equal total where either has an end, so that they correspond one by one."""
    cut: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    here, there = list(reversed(left)), list(reversed(right))
    while here and there:
        (one, one_size), (other, other_size) = here.pop(), there.pop()
        size = min(one_size, other_size)
        cut[0].append((one, size))
        cut[1].append((other, size))
        if one_size > size:
            here.append((one + size, one_size - size))
        if other_size > size:
            there.append((other + size, other_size - size))
    if here or there:
        raise ValueError("lists of different length do not correspond")
    return cut


def mismatch(ticket: Ticket, geometry: Geometry, numerics: str, model: str) -> str:
    """Return why an engine must not read what a ticket offers, or nothing."""
    if ticket.model != model:
        return "another model: configuration or weights differ"
    offered = Geometry(ticket.block_size, ticket.dtype, ticket.content)
    if offered != geometry:
        return f"another layout: {offered}, here {geometry}"
    if ticket.numerics != numerics:
        return "other numbers: vLLM's version, attention backend or data types differ"
    return ""


def _common(
    missing: dict[str, set[tuple[int, int]]], held: frozenset[str], lo: int, hi: int
) -> dict[tuple[int, int], tuple[str, ...]]:
    """Return the head ranges that are missing and held, each with its layers in the reader's order."""
    found: dict[tuple[int, int], list[str]] = {}
    for layer, ranges in missing.items():
        if layer in held:
            for first, last in sorted(ranges):
                if max(first, lo) < min(last, hi):
                    found.setdefault((max(first, lo), min(last, hi)), []).append(layer)
    return {heads: tuple(layers) for heads, layers in found.items()}


def _without(ranges: set[tuple[int, int]], lo: int, hi: int) -> set[tuple[int, int]]:
    left = {(first, min(last, lo)) for first, last in ranges if first < lo}
    right = {(max(first, hi), last) for first, last in ranges if last > hi}
    return {(first, last) for first, last in left | right if first < last}
