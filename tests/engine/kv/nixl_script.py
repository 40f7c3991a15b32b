"""Run by test_nixl.py in a Python that has NIXL: the same blocks arrive, by NIXL, in another process's memory.

Without an argument it is the target, and starts itself as the source.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

from medley.engine.kv.connections import Connections
from medley.engine.kv.direct import DirectMemory
from medley.engine.kv.messages import Remote
from medley.engine.kv.puller import Load, Puller
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
STALL_S = 0.5
(WHOLE,) = shards(layers_total=3, heads=4, tp=1, pp=1)


def source() -> None:
    cache = filled(WHOLE, BLOCKS)
    memory = DirectMemory(cache.regions())
    worker = Holder(HOST, block_answers(cache, SECRET, memory.offer), None)
    plain = Holder(HOST, block_answers(cache, SECRET), None)
    pins = Holder(HOST, pin_answers(lambda export: export == EXPORT), None)
    sys.stdout.write(json.dumps([worker.port, plain.port, pins.port]) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


@contextmanager
def another():
    """A source in another process, and the ports of its worker, of one without NIXL, and of its pins."""
    child = subprocess.Popen(
        [sys.executable, __file__, "source"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        (line,) = itertools.islice((each for each in child.stdout if each.startswith("[")), 1)  # NIXL writes there, too
        yield child, *json.loads(line)
    finally:
        child.kill()
        child.wait()


def offered(worker: int, pins: int, secret: bytes = SECRET):
    return ticket([(WHOLE, Address(HOST, worker), secret)], GRANTED, Address(HOST, pins))


class Struck(InThread):
    """Something happens to the source as soon as it has said where its blocks are."""

    def __init__(self, strike) -> None:
        super().__init__(Connections(None, stall_s=STALL_S))
        self._strike = strike

    def read(self, *arguments):
        answer = super().read(*arguments)
        strike, self._strike = self._strike, lambda: None
        strike()
        return answer


class Offering(InThread):
    """Where the blocks are is said otherwise."""

    def __init__(self, change) -> None:
        super().__init__(Connections(None, stall_s=STALL_S))
        self._change = change

    def read(self, *arguments):
        answer = super().read(*arguments)
        return self._change(answer) if isinstance(answer, Remote) else answer


def loaded(memory: DirectMemory | None, cache, wanted, strike=lambda: None, reader=None):
    """How a load of the last three blocks of a ticket ended."""
    puller = Puller(cache, reader or Struck(strike), fetcher=memory)
    puller.begin(Load("r", wanted, 2, INTO, 60))
    while not (ended := puller.ended()):
        time.sleep(0.002)
    puller.close()
    return ended[0]


def prepared(held):
    cache = empty(held, BLOCKS)
    return DirectMemory(cache.regions()), cache


def every_shard_is_filled() -> None:
    with another() as (_, worker, plain, pins):
        for held in (WHOLE, *shards(layers_total=3, heads=4, tp=2, pp=2)):
            for port in (worker, plain):  # a holder without NIXL sends the bytes
                memory, cache = prepared(held)
                ended = loaded(memory, cache, offered(port, pins))
                size = sum(array[0].nbytes for array in content(cache).values()) * len(INTO)
                assert (ended.fault, ended.bytes_read, ended.bytes_fetched) == ("", size, size * (port == worker)), (
                    ended
                )
                assert_loaded(cache)
        memory, cache = prepared(WHOLE)
        assert loaded(memory, cache, offered(worker, pins, b"x" * 32)).fault.startswith("grant")
        ended = loaded(None, cache, offered(worker, pins))
        assert (ended.fault, ended.bytes_fetched) == ("", 0)
        assert_loaded(cache)


def struck_sources_are_faults_and_the_next_one_is_read() -> None:
    memory, cache = prepared(WHOLE)
    with another() as (child, worker, _, pins):  # a stranger
        ended = loaded(memory, cache, offered(worker, pins), lambda: (child.kill(), child.wait()))
        assert ended.fault, ended
    with another() as (child, worker, _, pins):
        assert not loaded(memory, cache, offered(worker, pins)).fault
        ended = loaded(memory, cache, offered(worker, pins), lambda: (child.kill(), child.wait()))
        assert ended.fault, ended
    with another() as (child, worker, _, pins):
        assert not loaded(memory, cache, offered(worker, pins)).fault
        # Silent. Its memory can be read all the same where both are on one machine, and yet nobody says that it holds.
        ended = loaded(memory, cache, offered(worker, pins), lambda: child.send_signal(signal.SIGSTOP))
        assert ended.fault, ended
        wipe(cache)  # as if the blocks were another request's
        child.send_signal(signal.SIGCONT)
        # It answers what it was asked then, first the old; over TCP, UCX may abort instead, as its peer has gone.
        loaded(*prepared(WHOLE), offered(worker, pins))
        assert not any(array.any() for array in content(cache).values())
    with another() as (_, worker, _, pins):
        assert not loaded(memory, cache, offered(worker, pins)).fault
    assert_loaded(cache)


def wipe(cache) -> None:
    for array in content(cache).values():
        array[:] = 0


def an_idle_agent_leaves_the_processor_to_others() -> None:
    memory, _ = prepared(WHOLE)
    before = time.thread_time(), time.process_time()
    time.sleep(1)
    after = time.thread_time(), time.process_time()
    del memory
    # Its thread would take all of the second if it looked for work all the time, or what others left of it.
    assert after[1] - before[1] < 0.1, after


def bytes_are_sent_where_nixl_cannot_fetch_them() -> None:
    with another() as (_, worker, _, pins):
        memory, cache = prepared(WHOLE)
        wrong = Offering(lambda remote: remote.model_copy(update={"agent": remote.agent[:40]}))
        ended = loaded(memory, cache, offered(worker, pins), reader=wrong)
        assert (ended.fault, ended.bytes_fetched) == ("", 0), ended
        assert_loaded(cache)


def a_nixl_that_cannot_start_says_so() -> None:
    """Last: UCX reads this for each agent."""
    os.environ["UCX_TLS"] = "none that is known"
    try:
        prepared(WHOLE)
    except OSError as error:
        said = str(error)
    assert said.startswith("NIXL: "), said


def main() -> None:
    every_shard_is_filled()
    struck_sources_are_faults_and_the_next_one_is_read()
    an_idle_agent_leaves_the_processor_to_others()
    bytes_are_sent_where_nixl_cannot_fetch_them()
    a_nixl_that_cannot_start_says_so()
    sys.stdout.write("carried\n")


if __name__ == "__main__":
    source() if sys.argv[1:] else main()
