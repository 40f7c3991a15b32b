"""Run by test_nixl.py in a Python that has NIXL: the same blocks arrive, by NIXL, in another process's memory.

Without an argument it is the target, and starts itself as the source.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time

from medley.engine.kv.connections import Connections
from medley.engine.kv.direct import DirectMemory
from medley.engine.kv.puller import FailedError, Load, Puller
from medley.engine.kv.server import Holder, block_answers, pin_answers
from tests.engine.kv.cache import (
    BLOCKS,
    EXPORT,
    GRANTED,
    HOST,
    INTO,
    Address,
    InThread,
    assert_loaded,
    content,
    empty,
    filled,
    shards,
    ticket,
)

SECRET = b"s" * 32


def source() -> None:
    (held,) = shards(layers_total=3, heads=4, tp=1, pp=1)
    cache = filled(held, BLOCKS)
    memory = DirectMemory(cache.regions())
    worker = Holder(HOST, block_answers(cache, SECRET, memory.offer), None)
    plain = Holder(HOST, block_answers(cache, SECRET), None)
    pins = Holder(HOST, pin_answers(lambda export: export == EXPORT), None)
    sys.stdout.write(json.dumps([worker.port, plain.port, pins.port]) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def loaded(held, offered) -> tuple[object, object, DirectMemory]:
    cache = empty(held, BLOCKS)
    memory = DirectMemory(cache.regions())
    puller = Puller(cache, InThread(Connections(None)), fetcher=memory)
    puller.begin(Load("r", offered, 2, INTO, 60))
    while not (ended := puller.ended()):
        time.sleep(0.002)
    puller.close()
    return cache, ended[0], memory


def main() -> None:
    child = subprocess.Popen(
        [sys.executable, __file__, "source"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        (line,) = itertools.islice((each for each in child.stdout if each.startswith("[")), 1)  # NIXL writes there, too
        worker, plain, pins = json.loads(line)
        (whole,) = shards(layers_total=3, heads=4, tp=1, pp=1)
        for held in (whole, *shards(layers_total=3, heads=4, tp=2, pp=2)):
            for port in (worker, plain):  # a holder without NIXL sends the bytes
                offered = ticket([(whole, Address(HOST, port), SECRET)], GRANTED, Address(HOST, pins))
                cache, ended, _ = loaded(held, offered)
                size = sum(array[0].nbytes for array in content(cache).values()) * len(INTO)
                assert (ended.fault, ended.bytes_read) == ("", size), ended
                assert_loaded(cache)
        offered = ticket([(whole, Address(HOST, worker), b"x" * 32)], GRANTED, Address(HOST, pins))
        assert loaded(whole, offered)[1].fault.startswith("grant")
        unwanted(whole)
    finally:
        child.stdin.close()
        child.wait(10)
    sys.stdout.write("carried\n")


def unwanted(held) -> None:
    """Nobody wants the bytes any more: the transfer ends before that is said."""
    cache, other = filled(held, BLOCKS), empty(held, BLOCKS)
    here, there = DirectMemory(cache.regions()), DirectMemory(other.regions())

    def check() -> None:
        raise FailedError("the request is over")

    try:
        size = there.fetch(here.offer(cache.reading(held, GRANTED)), other.writing(held, GRANTED), check)
    except FailedError:
        size = None
    assert size in {None, sum(array[0].nbytes for array in content(cache).values()) * len(GRANTED)}


if __name__ == "__main__":
    source() if sys.argv[1:] else main()
