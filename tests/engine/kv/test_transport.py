"""Blocks go from any engine's workers to any other's, over real sockets; whatever goes wrong is an end with a reason."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest

from medley.core.identity import Role
from medley.engine.kv import connections as connecting
from medley.engine.kv import puller as pulling
from medley.engine.kv import server as serving
from medley.engine.kv.connections import Connections
from medley.engine.kv.layout import Shard
from medley.engine.kv.messages import LENGTH, Answer, ReadRequest, Remote, framed, grant, slice_bytes
from medley.engine.kv.puller import Load, Loaded, Puller
from medley.engine.kv.server import Holder, block_answers, pin_answers
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
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

STALL_S = 0.5


class Source:
    """An engine that exports: its workers' holders and its pin server."""

    def __init__(self, stack: ExitStack, *, keyring: Keyring | None = None, **sizes: int) -> None:
        self.held = {EXPORT}
        self.caches = [filled(each, BLOCKS) for each in shards(**sizes)]
        self.secrets = [bytes([index]) * 32 for index in range(len(self.caches))]
        self.holders = [
            Holder(HOST, block_answers(cache, secret), keyring, stall_s=STALL_S)
            for cache, secret in zip(self.caches, self.secrets, strict=True)
        ]
        self.pins = Holder(HOST, pin_answers(lambda export: export in self.held), keyring, stall_s=STALL_S)
        for holder in (*self.holders, self.pins):
            stack.callback(holder.close)

    def ticket(self, ports: list[int] | None = None, **changes):
        ports = ports or [holder.port for holder in self.holders]
        at = [
            (cache.shard, Address(HOST, port), secret)
            for cache, port, secret in zip(self.caches, ports, self.secrets, strict=True)
        ]
        return ticket(at, GRANTED, Address(HOST, self.pins.port), **changes)


def pulled(stack: ExitStack, held: Shard, offered, *, client=None, within_s: float = 20.0, first: int = 2):
    """One worker's load, to its end; its cache and how the load ended."""
    cache = empty(held, BLOCKS)
    puller = Puller(cache, InThread(Connections(client, stall_s=STALL_S)))
    stack.callback(puller.close)
    puller.begin(Load("r", offered, first, INTO, within_s))
    return cache, end(puller)


def end(puller: Puller) -> Loaded:
    while not (ended := puller.ended()):
        time.sleep(0.002)
    (one,) = ended
    return one


@pytest.mark.parametrize("target", [(1, 1), (2, 1), (1, 2), (2, 3), (8, 1)], ids="to tp{0[0]} pp{0[1]}".format)
@pytest.mark.parametrize("source", [(1, 1), (2, 1), (1, 2), (4, 2)], ids="tp{0[0]} pp{0[1]}".format)
def test_every_worker_gets_what_it_holds_and_nothing_else_is_touched(source, target):
    with ExitStack() as stack:
        engine = Source(stack, layers_total=6, heads=4, tp=source[0], pp=source[1])
        for held in shards(layers_total=6, heads=4, tp=target[0], pp=target[1]):
            cache, ended = pulled(stack, held, engine.ticket())
            size = sum(array[0].nbytes for array in content(cache).values()) * len(INTO)
            assert (ended.fault, ended.bytes_read) == ("", size)
            assert_loaded(cache)


def test_large_reads_are_divided_over_connections(monkeypatch):
    monkeypatch.setattr("medley.engine.kv.puller._WORTH_A_CONNECTION", 100)
    dialled = []
    dial = Connections._dial
    monkeypatch.setattr(Connections, "_dial", lambda self, *to: dialled.append(to) or dial(self, *to))
    with ExitStack() as stack:
        engine = Source(stack, layers_total=6, heads=4, tp=1, pp=1)
        (held,) = shards(layers_total=6, heads=4, tp=1, pp=1)
        cache, ended = pulled(stack, held, engine.ticket())
        assert ended.fault == ""
        assert_loaded(cache)
        assert dialled.count((HOST, engine.holders[0].port)) > 1


def test_connections_are_used_again_and_dialled_anew_when_they_ended(monkeypatch):
    dialled = []
    dial = Connections._dial
    monkeypatch.setattr(Connections, "_dial", lambda self, *to: dialled.append(to) or dial(self, *to))
    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        puller = Puller(empty(held, BLOCKS), InThread(Connections(None, stall_s=STALL_S)))
        stack.callback(puller.close)
        for _ in range(3):
            puller.begin(Load("r", engine.ticket(), 2, INTO, 20))
            assert end(puller).fault == ""
        assert len(dialled) == 2  # the worker and the pin server
        for connection in [each for holder in engine.holders for each in list(holder._open)]:
            connection.shutdown(socket.SHUT_RDWR)
        puller.begin(Load("r", engine.ticket(), 2, INTO, 20))
        assert end(puller).fault == ""
        assert len(dialled) == 3


@contextmanager
def server(behave):
    """A holder that misbehaves: `behave(socket)` after it read a question."""
    listening = socket.create_server((HOST, 0))

    def serve():
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            with sock, suppress(OSError):  # the reader hangs up, too
                (size,) = LENGTH.unpack(sock.recv(LENGTH.size, socket.MSG_WAITALL))
                sock.recv(size, socket.MSG_WAITALL)
                behave(sock)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def offering(size: int) -> bytes:
    return framed(Answer(ok=True, bytes_total=size))


GOOD = 3 * 2 * 2 * 4 * 6 * 2  # blocks x layers x heads x positions x content x bytes: what the test's worker asks for


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (lambda sock: None, "closed"),
        (lambda sock: sock.sendall(b"\xff\xff\xff\xff"), "at most"),
        (lambda sock: sock.sendall(LENGTH.pack(2) + b"hi"), "JSON"),
        (lambda sock: sock.sendall(framed(Answer(ok=False, reason="no room"))), "no room"),
        (lambda sock: sock.sendall(offering(GOOD - 1)), "bytes are offered"),
        (lambda sock: sock.sendall(offering(GOOD) + b"x" * (GOOD - 1)), "closed"),
        (lambda sock: (sock.sendall(offering(GOOD) + b"x"), time.sleep(3 * STALL_S)), "timed out"),
        (lambda sock: time.sleep(3 * STALL_S), "timed out"),
    ],
    ids=["hangs up", "a huge message", "no message", "refuses", "another size", "ends early", "stalls", "is silent"],
)
def test_a_source_that_misbehaves_ends_the_load_with_a_reason(behave, said):
    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        port = stack.enter_context(server(behave))
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        _, ended = pulled(stack, held, engine.ticket([port]))
        assert said in ended.fault, ended


def test_a_source_that_drips_is_given_up_in_time():
    def drip(sock):
        sock.sendall(offering(GOOD))
        for _ in range(100):
            sock.sendall(b"x")
            time.sleep(0.02)

    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        port = stack.enter_context(server(drip))
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        _, ended = pulled(stack, held, engine.ticket([port]), within_s=0.2)
        assert "not done within 0.2 s" in ended.fault


def test_a_request_that_is_over_ends_its_load():
    begun = threading.Event()

    def hold(sock):
        sock.sendall(offering(GOOD) + b"x")
        begun.set()
        for _ in range(200):
            sock.sendall(b"x")
            time.sleep(0.01)

    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        port = stack.enter_context(server(hold))
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        puller = Puller(empty(held, BLOCKS), InThread(Connections(None, stall_s=STALL_S)))
        stack.callback(puller.close)
        puller.begin(Load("r", engine.ticket([port]), 2, INTO, 20))
        assert begun.wait(10)
        puller.cancel("r")
        puller.cancel("another")
        assert end(puller).fault == "the request is over"


def test_blocks_that_were_given_back_meanwhile_are_not_believed():
    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        engine.held.clear()
        _, ended = pulled(stack, held, engine.ticket())
        assert ended.fault == "export_id: released, run out, or never known"


def test_a_source_that_is_gone_is_a_fault_and_so_is_one_that_lacks_a_slice():
    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        engine.holders[0].close()
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        assert "refused" in pulled(stack, held, engine.ticket())[1].fault
        (more,) = shards(layers_total=3, heads=2, tp=1, pp=1)
        assert "no source holds heads 0 to 1 of model.layers.2.attn" in pulled(stack, more, engine.ticket())[1].fault


def test_an_offer_in_too_many_pieces_is_sent_instead(monkeypatch):
    def offer(pieces):
        return Remote(agent="a", pieces=tuple((n, len(piece)) for n, piece in enumerate(pieces)))

    (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
    cache = filled(held, BLOCKS)
    answer = block_answers(cache, b"s" * 32, offer)
    asked = ReadRequest(
        export_id=EXPORT, grant=grant(b"s" * 32, EXPORT, GRANTED), granted=GRANTED, wanted=(0, 5), layers=held.layers,
        head_lo=0, head_n=2, block_size=4, dtype="float16", content=6, by="nixl",
    )  # fmt: skip
    size = 2 * len(GRANTED) * slice_bytes(cache.geometry, 2)
    offered = answer(asked)  # of each layer blocks 3 to 5, 9 and 1
    assert (offered.bytes_total, len(offered.remote.pieces)) == (size, 6)
    monkeypatch.setattr(serving, "_MOST_PIECES", 5)
    sent = answer(asked)
    assert (sent.bytes_total, sum(map(len, sent.pieces))) == (size, size)


def test_a_source_that_goes_while_its_memory_is_read_ends_the_load(monkeypatch):
    monkeypatch.setattr(pulling, "_ASKS_EVERY_S", 0.01)

    class Endless:
        def fetch(self, remote, into, check):
            del remote, into
            while True:
                check()

    class Offering(InThread):
        def read(self, *_):
            return Remote(agent="a", pieces=())

    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        puller = Puller(empty(held, BLOCKS), Offering(Connections(None, stall_s=STALL_S)), fetcher=Endless())
        stack.callback(puller.close)
        puller.begin(Load("r", engine.ticket(), 2, INTO, 60))
        engine.held.clear()
        assert end(puller).fault == "export_id: released, run out, or never known"
        puller.begin(Load("r", engine.ticket(), 2, INTO, 60))
        engine.pins.close()
        assert end(puller).fault


def test_questions_for_another_are_refused():
    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        assert "engine core has no blocks" in pulled(stack, held, engine.ticket([engine.pins.port]))[1].fault
        ours = engine.pins.port
        engine.pins.port = engine.holders[0].port
        assert "a worker gives blocks" in pulled(stack, held, engine.ticket())[1].fault
        engine.pins.port = ours


def test_only_engines_of_the_service_get_blocks(tmp_path):
    issuer, stranger = Issuer.new(), Issuer.new()

    def keyring(name: str, by: Issuer, role: Role, **more) -> Keyring:
        return Keyring(by.folder(tmp_path / name, role, **more), lambda words: None)

    with ExitStack() as stack:
        engine = Source(stack, keyring=keyring("source", issuer, Role.ENGINE), layers_total=2, heads=2, tp=2, pp=1)
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        friend = keyring("target", issuer, Role.ENGINE)
        cache, ended = pulled(stack, held, engine.ticket(), client=lambda: friend.client)
        assert ended.fault == ""
        assert_loaded(cache)
        for name, other in {
            "a router": keyring("router", issuer, Role.ROUTER),
            "another service": keyring("service", issuer, Role.ENGINE, service="models/other"),
            "another authority": keyring("stranger", stranger, Role.ENGINE, trusted=(issuer,)),
        }.items():
            _, ended = pulled(stack, held, engine.ticket(), client=lambda other=other: other.client)
            assert ended.fault, name
            assert ended.bytes_read == 0, name
        _, ended = pulled(stack, held, engine.ticket())  # without TLS at all
        assert ended.fault


def test_a_reader_trusts_only_an_engine(tmp_path):
    issuer = Issuer.new()
    router = Keyring(issuer.folder(tmp_path / "router", Role.ROUTER), lambda words: None)
    friend = Keyring(issuer.folder(tmp_path / "engine", Role.ENGINE), lambda words: None)
    with ExitStack() as stack:
        posing = Source(stack, keyring=router, layers_total=2, heads=2, tp=1, pp=1)
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        _, ended = pulled(stack, held, posing.ticket(), client=lambda: friend.client)
        assert "engine.medley" in ended.fault


def test_closing_ends_connections_and_threads(monkeypatch):
    monkeypatch.setattr(connecting, "CONNECT_S", 2.0)
    before = threading.active_count()
    with ExitStack() as stack:
        engine = Source(stack, layers_total=2, heads=2, tp=1, pp=1)
        (held,) = shards(layers_total=2, heads=2, tp=1, pp=1)
        pulled(stack, held, engine.ticket())
    for thread in threading.enumerate():
        if thread.name.startswith("medley-kv"):
            thread.join(5)
    assert threading.active_count() <= before
