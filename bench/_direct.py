"""Moves blocks by NIXL between two processes of vLLM's Python, beside a plain copy over TLS. For `migration`.

What it runs there is itself, as a script: `give`, or `take` with the answer of the other on its standard input.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from medley.engine.kv.blocks import HostBlocks
from medley.engine.kv.layout import Geometry, Shard
from medley.engine.kv.messages import Remote, slice_bytes

GEOMETRY, BLOCKS = Geometry(32, "float32", 64), 192
SHARD = Shard(tuple(f"layer {n}" for n in range(8)), 0, 4)
SIZE = len(SHARD.layers) * BLOCKS * slice_bytes(GEOMETRY, SHARD.head_n)
_ROUNDS = 5
_OPERATOR = Path(__file__).parents[1] / "operator"
_PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "bufsize": 1}


def cache(value: int) -> HostBlocks:
    """Return a cache, every byte of which has a value."""
    shape = (BLOCKS, SHARD.head_n, slice_bytes(GEOMETRY, 1))
    return HostBlocks(SHARD, GEOMETRY, {name: np.full(shape, value, np.uint8) for name in SHARD.layers})


def bandwidth_by_nixl(python: Path, nixl: Path, plainly: Callable[[], float]) -> tuple[float, float, float]:
    """Return bytes per second by NIXL over TCP, and by what it takes on one machine, and of a plain copy; medians.

    Each round does all three, so that others on this machine are felt by all.
    """
    with ExitStack() as stack:
        once = [stack.enter_context(_reading(python, nixl, ways)) for ways in ("tcp", "all")]
        for each in (*once, plainly):
            each()  # connections are made, pages are touched
        rounds = [[SIZE / each() for each in (*once, plainly)] for _ in range(_ROUNDS)]
    tcp, here, plain = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    return tcp, here, plain


@contextmanager
def _reading(python: Path, nixl: Path, ways: str) -> Iterator[Callable[[], float]]:
    """Two processes and a function that has one's cache read by the other; it returns the seconds."""
    path = os.pathsep.join((str(_OPERATOR), str(nixl)))
    environment = {**os.environ, "PYTHONPATH": path, "UCX_TLS": ways}
    command = (str(python), __file__)
    with (
        subprocess.Popen((*command, "give"), env=environment, **_PIPES) as giving,
        subprocess.Popen((*command, "take"), env=environment, **_PIPES) as taking,
    ):
        try:
            taking.stdin.write(_said(giving))

            def once() -> float:
                taking.stdin.write("again\n")
                return float(_said(taking))

            yield once
        finally:
            for each in (giving, taking):
                each.kill()


def _said(process: subprocess.Popen[str]) -> str:
    """Return the next line that is ours: NIXL writes there, too."""
    for line in process.stdout:
        if line.startswith(">"):
            return line[1:]
    raise AssertionError("a process with NIXL ended")


def _say(what: str) -> None:
    sys.stdout.write(f">{what}\n")
    sys.stdout.flush()


def _give() -> None:
    from medley.engine.kv.direct import DirectMemory

    giving = cache(1)
    memory = DirectMemory(giving.regions())
    _say(memory.offer(giving.reading(SHARD, range(BLOCKS))).model_dump_json())
    sys.stdin.read()


def _take() -> None:
    from medley.engine.kv.direct import DirectMemory

    taking = cache(0)
    memory = DirectMemory(taking.regions())
    remote = Remote.model_validate_json(sys.stdin.readline())
    while sys.stdin.readline():
        began = time.perf_counter()
        memory.fetch(remote, taking.writing(SHARD, range(BLOCKS)), lambda: None)
        seconds = time.perf_counter() - began
        for piece in taking.writing(SHARD, range(BLOCKS)):
            array = np.frombuffer(piece, np.uint8)
            if not array.all():
                raise AssertionError("the copy is not whole")
            array[:] = 0
        _say(str(seconds))


if __name__ == "__main__":
    {"give": _give, "take": _take}[sys.argv[1]]()
