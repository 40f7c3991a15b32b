"""Moves blocks between two porters without vLLM, and the same over a plain TLS socket. For `migration`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench._direct import BLOCKS, GEOMETRY, SHARD, SIZE, bandwidth_by_nixl, cache
from e2e.vllm_venv import ensure_venv
from medley.core.identity import TLS_FOLDER_VARIABLE, Role
from medley.engine.kv.errands import Errands
from medley.engine.kv.messages import grant
from medley.engine.kv.puller import Load, Puller
from medley.engine.kv.server import Holder, block_answers, pin_answers
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
from medley.wire.ticket import Source, Ticket, history_digest

_HOST, _EXPORT, _SECRET = "127.0.0.1", "export-1", b"s" * 32
_ROUNDS = 5


def bandwidth() -> tuple[float, float]:
    """Return bytes per second between two porters, and over one TLS socket between two processes; medians."""
    with tempfile.TemporaryDirectory() as made, environment({"MEDLEY_KV_HOST": _HOST}):
        folder = Issuer.new().folder(Path(made), Role.ENGINE)
        os.environ[TLS_FOLDER_VARIABLE] = str(folder)
        with _blocks(folder) as once, plain_copies(folder, SIZE) as plainly:
            for each in (once, plainly):
                each()  # connections are made, pages are touched
            rates = [(SIZE / once(), SIZE / plainly()) for _ in range(_ROUNDS)]
    return statistics.median(ours for ours, _ in rates), statistics.median(plain for _, plain in rates)


def bandwidth_directly(nixl: Path) -> tuple[float, float, float]:
    """Return bytes per second by NIXL over TCP, by NIXL on one machine, and over one TLS socket; medians."""
    with tempfile.TemporaryDirectory() as made:
        folder = Issuer.new().folder(Path(made), Role.ENGINE)
        with plain_copies(folder, SIZE) as plainly:
            return bandwidth_by_nixl(ensure_venv(), nixl, plainly)


@contextmanager
def _blocks(folder: Path) -> Iterator[Callable[[], float]]:
    """Two porters and a function that has one cache read by the other, and returns the seconds."""
    caches = [cache(1) for _ in range(2)]
    giving, taking = (Errands(_HOST, block_answers(each, _SECRET), lasting=True) for each in caches)
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
        loaded(puller, Load("r", ticket, 0, granted, 120.0))
        return time.perf_counter() - began

    try:
        yield once
    finally:
        for each in (giving, taking, pins):
            each.close()


def loaded(puller: Puller, load: Load) -> int:
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
def plain_copies(folder: Path, size: int) -> Iterator[Callable[[], float]]:
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
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for processes that are started in the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
