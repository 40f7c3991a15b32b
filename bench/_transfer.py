"""Moves blocks without a second vLLM: how fast they go, and what an engine that gives them feels. For `migration`."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np

from bench._direct import BLOCKS, GEOMETRY, SHARD, SIZE, bandwidth_by_nixl, cache
from e2e.soak.drive import Driver
from e2e.soak.engines import Engine, VllmEngine
from e2e.vllm_venv import ensure_venv
from medley.core.identity import TLS_FOLDER_VARIABLE, Role
from medley.engine.kv.blocks import HostBlocks
from medley.engine.kv.errands import Errands
from medley.engine.kv.layout import Geometry, Shard
from medley.engine.kv.messages import grant, slice_bytes
from medley.engine.kv.puller import Load, Puller
from medley.engine.kv.server import Holder, block_answers, pin_answers
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
from medley.wire.ticket import EXPORT_PATH, RELEASE_PATH, Exported, Source, Ticket, history_digest

_HOST, _EXPORT, _SECRET = "127.0.0.1", "export-1", b"s" * 32
_ROUNDS = 5
_TOKENS = 60  # of each of the two phases


def bandwidth() -> tuple[float, float]:
    """Return bytes per second between two porters, and over one TLS socket between two processes; medians."""
    with tempfile.TemporaryDirectory() as made, _environment({"MEDLEY_KV_HOST": _HOST}):
        folder = Issuer.new().folder(Path(made), Role.ENGINE)
        os.environ[TLS_FOLDER_VARIABLE] = str(folder)
        with _blocks(folder) as once, _plain(folder, SIZE) as plainly:
            for each in (once, plainly):
                each()  # connections are made, pages are touched
            rates = [(SIZE / once(), SIZE / plainly()) for _ in range(_ROUNDS)]
    return statistics.median(ours for ours, _ in rates), statistics.median(plain for _, plain in rates)


def bandwidth_directly(nixl: Path) -> tuple[float, float, float]:
    """Return bytes per second by NIXL over TCP, by NIXL on one machine, and over one TLS socket; medians."""
    with tempfile.TemporaryDirectory() as made:
        folder = Issuer.new().folder(Path(made), Role.ENGINE)
        with _plain(folder, SIZE) as plainly:
            return bandwidth_by_nixl(ensure_venv(), nixl, plainly)


async def slowdown(driver: Driver, prompt: str, **more: object) -> tuple[float, float, int]:
    """Return the mean seconds between tokens of an engine alone, and while its blocks are read; and bytes read.

    Who reads keeps off the engine's processor: it would be on another machine.
    """
    engine, other = driver.engines
    driver.away = {other.replica}
    driver.show()
    body = {
        "model": engine.model, "prompt": prompt, "temperature": 0, "ignore_eos": True, "stream": True, **more,
    }  # fmt: skip
    at: list[float] = []
    began: float | None = None
    reading: asyncio.Task[int] | None = None
    url = f"{driver.router.url}/v1/completions"
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(1200)) as session,
        session.post(url, json=body) as response,
    ):
        ended = asyncio.Event()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            at.append(time.monotonic())
            if len(at) == _TOKENS:
                reading = asyncio.create_task(_read_again_and_again(driver, engine, ended))
                began = at[-1]
            if began is not None and len(at) >= 2 * _TOKENS and at[-1] > began + 3:
                break
        ended.set()
        assert reading is not None
        served = await reading
    assert began is not None
    gaps = [(later - earlier, earlier >= began) for earlier, later in pairwise(at[5:])]
    quiet, busy = ([gap for gap, during in gaps if during is wanted] for wanted in (False, True))
    return statistics.mean(quiet), statistics.mean(busy), served


async def _read_again_and_again(driver: Driver, engine: Engine, ended: asyncio.Event) -> int:
    """Export what runs, and read its blocks as an engine would, until told."""
    assert isinstance(engine, VllmEngine)
    assert engine.api is not None
    folder = engine.secrets.folders[Role.ENGINE]
    elsewhere = os.sched_getaffinity(0) - {int(engine.threads)}
    with _environment({TLS_FOLDER_VARIABLE: str(folder), "MEDLEY_KV_HOST": _HOST}), _bound_to(elsewhere):
        errands = Errands(_HOST, lambda _: (_ for _ in ()).throw(OSError("this one gives nothing")))
    puller: Puller | None = None
    served = 0
    try:
        while not ended.is_set():
            asked = {"requests": None, "keep_running": True, "lease_s": 30.0}
            async with driver.session.post(engine.api + EXPORT_PATH, json=asked, **engine.access()) as answer:
                (ticket,) = Exported.model_validate_json(await answer.read()).tickets
            load = Load("bench", ticket, 0, tuple(range(len(ticket.blocks))), 60.0)
            puller = puller or Puller(_like(ticket), errands)
            served += await asyncio.to_thread(_loaded_on, elsewhere, puller, load)
            body = {"exports": [ticket.export_id]}
            async with driver.session.post(engine.api + RELEASE_PATH, json=body, **engine.access()) as answer:
                await answer.read()
    finally:
        errands.close()
    return served


def _like(ticket: Ticket) -> HostBlocks:
    """Return an empty cache of the shape that a ticket of one worker tells of, with room to grow."""
    (source,) = ticket.sources
    geometry = Geometry(ticket.block_size, ticket.dtype, ticket.content)
    size = slice_bytes(geometry, 1)
    shard = Shard(source.layers, source.head_lo, source.head_n)
    blocks = len(ticket.blocks) + 64
    return HostBlocks(
        shard, geometry, {name: np.zeros((blocks, source.head_n, size), np.uint8) for name in shard.layers}
    )


@contextmanager
def _blocks(folder: Path) -> Iterator[Callable[[], float]]:
    """Two porters and a function that has one cache read by the other, and returns the seconds."""
    caches = [cache(1) for _ in range(2)]
    giving, taking = (Errands(_HOST, block_answers(each, _SECRET)) for each in caches)
    pins = Holder(_HOST, pin_answers(lambda _: True), Keyring(folder, sys.stderr.write))
    granted = tuple(range(BLOCKS))
    ticket = Ticket(
        export_id=_EXPORT, request_id="r", valid_tokens=BLOCKS * GEOMETRY.block_size, tokens=history_digest([]),
        block_size=GEOMETRY.block_size, blocks=granted, dtype=GEOMETRY.dtype, content=GEOMETRY.content,
        numerics="1" * 64, model="2" * 64, lease_s=600.0, pins={"host": _HOST, "port": pins.port},
        sources=(
            Source(host=_HOST, port=giving.port, pp=0, tp=0, layers=SHARD.layers, head_lo=0, head_n=SHARD.head_n,
                   grant=grant(_SECRET, _EXPORT, granted)),
        ),
    )  # fmt: skip
    puller = Puller(caches[1], taking)

    def once() -> float:
        began = time.perf_counter()
        _loaded(puller, Load("r", ticket, 0, granted, 120.0))
        return time.perf_counter() - began

    try:
        yield once
    finally:
        for each in (giving, taking, pins):
            each.close()


def _loaded(puller: Puller, load: Load) -> int:
    puller.begin(load)
    while not (ended := puller.ended()):
        time.sleep(0.001)
    if ended[0].fault:
        raise AssertionError(ended[0].fault)
    return ended[0].bytes_read


_SENDER = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
data = memoryview(bytearray(b"x") * int(sys.argv[3]))
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
one, _ = listening.accept()
with context.wrap_socket(one, server_side=True) as one:
    while one.recv(1):
        sent = 0
        while sent < len(data):
            sent += one.send(data[sent:])
"""
_RECEIVER = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
data = memoryview(bytearray(int(sys.argv[2])))
with context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1])))) as one:
    while sys.stdin.readline():
        one.send(b"x")
        got = 0
        while got < len(data):
            got += one.recv_into(data[got:])
        print(got, flush=True)
"""


@contextmanager
def _plain(folder: Path, size: int) -> Iterator[Callable[[], float]]:
    """Two processes and a function that has one's buffer copied into the other's by TLS; it returns the seconds."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    files = [str(folder / "tls.crt"), str(folder / "tls.key")]
    with subprocess.Popen([sys.executable, "-c", _SENDER, *files, str(size)], **pipes) as sender:
        port = sender.stdout.readline().strip()
        with subprocess.Popen([sys.executable, "-c", _RECEIVER, port, str(size)], **pipes) as receiver:

            def once() -> float:
                began = time.perf_counter()
                receiver.stdin.write("again\n")
                if int(receiver.stdout.readline()) != size:
                    raise AssertionError("the copy is not whole")
                return time.perf_counter() - began

            yield once
            receiver.stdin.close()


@contextmanager
def _bound_to(processors: set[int]) -> Iterator[None]:
    """Bind this thread, and what is started from it in the block; to nothing, if there is no processor left."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _loaded_on(processors: set[int], puller: Puller, load: Load) -> int:
    with _bound_to(processors):  # the puller's threads, too: they are started from here
        return _loaded(puller, load)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for processes that are started in the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
