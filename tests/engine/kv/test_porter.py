"""Blocks go through processes beside the workers, whatever the workers are doing; porters that die are replaced."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, suppress
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.identity import TLS_FOLDER_VARIABLE, Role
from medley.engine.kv.blocks import HostBlocks
from medley.engine.kv.channels import PART_BYTES, STAGING_BYTES, Errand, Part, Staging
from medley.engine.kv.errands import Errands
from medley.engine.kv.layout import Geometry, Shard
from medley.engine.kv.messages import Answer, PinQuery, ReadRequest, parse_answer, slice_bytes
from medley.engine.kv.puller import Load, Puller
from medley.engine.kv.server import Holder, Payload, block_answers, pin_answers
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
from medley.wire.ticket import Ticket
from tests.engine.kv.cache import EXPORT, HOST, Address
from tests.engine.kv.cache import ticket as offered

SECRET, BLOCKS = b"s" * 32, 100
GEOMETRY = Geometry(block_size=32, dtype="float32", content=32)
HELD = Shard(("a", "b", "c"), 0, 8)
GRANTED = tuple(range(99, 0, -1))


def cache(fill: int | None) -> HostBlocks:
    size = slice_bytes(GEOMETRY, 1)
    made = np.zeros((len(HELD.layers), BLOCKS, HELD.head_n, size), np.uint8)
    if fill is not None:
        made[:] = np.random.default_rng(fill).integers(0, 256, made.shape, dtype=np.uint8)
    return HostBlocks(HELD, GEOMETRY, dict(zip(HELD.layers, made, strict=True)))


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """A source with its porter and pins, and a target with its porter; over TLS."""
    folder = Issuer.new().folder(tmp_path_factory.mktemp("tls"), Role.ENGINE)
    held = {EXPORT}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv(TLS_FOLDER_VARIABLE, str(folder))
        patch.setenv("MEDLEY_KV_HOST", HOST)
        given, taken = cache(1), cache(None)
        source = Errands(HOST, block_answers(given, SECRET), lasting=True)
        target = Errands(HOST, block_answers(taken, b"t" * 32), lasting=True)
        pins = Holder(HOST, pin_answers(lambda export: export in held), Keyring(folder, lambda words: None))
        for each in (source, target, pins):
            stack.callback(each.close)
        puller = Puller(taken, target)
        yield source, target, pins, puller, given, taken, held


def ticket(source: Errands, pins: Holder, **changes) -> Ticket:
    own = {
        "valid_tokens": len(GRANTED) * GEOMETRY.block_size,
        "block_size": GEOMETRY.block_size,
        "dtype": GEOMETRY.dtype,
        "content": GEOMETRY.content,
    }
    at = Address(HOST, source.port), Address(HOST, pins.port)
    return offered([(HELD, at[0], SECRET)], GRANTED, at[1], **own, **changes)


def loaded(puller: Puller, wanted: Ticket, into: tuple[int, ...] = tuple(range(len(GRANTED)))):
    puller.begin(Load("r", wanted, 0, into, 30.0))
    while not (ended := puller.ended()):
        time.sleep(0.002)
    return ended[0]


def test_every_byte_arrives_where_it_belongs(engines):
    source, _, pins, puller, given, taken, _ = engines
    ended = loaded(puller, ticket(source, pins))
    size = sum(layer[0].nbytes for layer in given._layers.values()) * len(GRANTED)
    assert size > 2 * PART_BYTES
    assert (ended.fault, ended.bytes_read) == ("", size)
    for name in HELD.layers:
        assert np.array_equal(taken._layers[name][: len(GRANTED)], given._layers[name][list(GRANTED)])
        assert not taken._layers[name][len(GRANTED) :].any()


def test_what_is_refused_or_wrong_is_a_reason_and_the_next_load_succeeds(engines):
    source, _, pins, puller, _, _, held = engines
    other = ticket(source, pins, export_id="another")
    assert loaded(puller, other).fault == "grant: not of this worker, or for other blocks"
    held.clear()
    assert loaded(puller, ticket(source, pins)).fault == "export_id: released, run out, or never known"
    held.add(EXPORT)
    assert "refused" in loaded(puller, _elsewhere(ticket(source, pins), 1)).fault
    assert loaded(puller, ticket(source, pins)).fault == ""


def test_memory_that_is_used_again_for_the_next_piece_is_copied_before_it_is_asked_for(engines):
    whole = np.random.default_rng(2).bytes(3 * PART_BYTES + 17)
    size = PART_BYTES // 2 + 5

    def one_buffer():
        buffer = memoryview(bytearray(size))
        for at in range(0, len(whole), size):
            piece = whole[at : at + size]
            buffer[: len(piece)] = piece
            yield buffer[: len(piece)]
            buffer[:] = bytes(size)

    got = bytearray()

    def into_one_buffer():
        buffer = memoryview(bytearray(size))
        while len(got) < len(whole):
            piece = buffer[: min(size, len(whole) - len(got))]
            yield piece
            got.extend(piece)

    source = Errands(HOST, lambda _: Payload(len(whole), one_buffer()))
    target = Errands(HOST, lambda _: Answer(ok=False, reason="nothing is given"))
    question = ReadRequest(
        export_id=EXPORT, grant="0" * 64, granted=(1,), wanted=(0, 1), layers=("a",), head_lo=0, head_n=1,
        block_size=8, dtype="float32", content=64,
    )  # fmt: skip
    assert target.read(HOST, source.port, question, len(whole), into_one_buffer(), lambda: None) == len(whole)
    assert bytes(got) == whole
    source.close()
    target.close()


@given(sizes=st.lists(st.sampled_from([0, 1, 7, 4096]), max_size=40), times=st.sampled_from([1, 60]))
def test_pieces_come_out_of_the_shared_memory_as_they_went_in(sizes, times):
    memory, sizes = Staging(), sizes * times  # more than one call takes
    whole = np.random.default_rng(3).bytes(sum(sizes))
    again = bytearray(len(whole))
    assert memory.write(5, cut(whole, sizes)) == len(whole)
    assert bytes(memory.part(Part(at=5, size=PART_BYTES))[: len(whole)]) == whole[:PART_BYTES]
    assert memory.read(5, cut(again, sizes[::-1])) == len(whole)
    assert again == whole
    os.close(memory.file)


def test_more_than_the_shared_memory_holds_is_an_error():
    memory = Staging()
    with pytest.raises(OSError, match="ends before 1 pieces"):
        memory.read(STAGING_BYTES - 3, [memoryview(bytearray(2)), memoryview(bytearray(2))])
    os.close(memory.file)


def cut(whole, sizes) -> list[memoryview]:
    ends = accumulate(sizes, initial=0)
    return [memoryview(whole)[lo:hi] for lo, hi in pairwise(ends)]


def test_a_load_that_nobody_wants_any_more_ends(engines):
    _, target, pins, _, _, taken, _ = engines
    begun, going_on = threading.Event(), threading.Event()

    def slow(question):
        begun.set()
        assert going_on.wait(20)
        return Payload(4, iter([memoryview(b"late")]))

    silent = Errands(HOST, slow)
    puller = Puller(taken, target)
    puller.begin(Load("r", ticket(silent, pins), 0, tuple(range(len(GRANTED))), 30.0))
    assert begun.wait(20)
    puller.cancel("r")
    while not (ended := puller.ended()):
        time.sleep(0.002)
    assert ended[0].fault == "the request is over"
    going_on.set()
    silent.close()


def test_a_way_that_breaks_between_two_parts_leaves_the_conversation_in_order(engines):
    _, target, *_ = engines

    def breaks(question):
        def pieces():
            yield memoryview(bytes(PART_BYTES))
            raise ConnectionError("the cable is cut")

        return Payload(2 * PART_BYTES, pieces())

    source = Errands(HOST, breaks)
    errand = Errand(host=HOST, port=source.port, question=PinQuery(export_id=EXPORT), expected=2 * PART_BYTES)
    with target._channels.lent() as channel:
        for _ in range(2):  # the second is understood, too
            channel.send(errand)
            assert parse_answer(channel.receive()) == Answer(ok=True, bytes_total=2 * PART_BYTES)
            assert Part.model_validate_json(channel.receive()).size == PART_BYTES
            channel.send(Part())
            assert "closed" in Part.model_validate_json(channel.receive()).fault
    source.close()


@pytest.mark.parametrize("aside", [True, False])
def test_a_porter_and_who_gives_it_blocks_leave_a_bound_model_its_processor(engines, aside):
    _, target, *_ = engines
    everywhere = os.sched_getaffinity(0)
    bound = {min(everywhere)}
    answering = []

    def answer(_):
        answering.append(os.sched_getaffinity(0))
        return Answer(ok=False, reason="nothing is given")

    os.sched_setaffinity(0, bound)
    try:
        porter = Errands(HOST, answer, aside=aside)
        found = os.sched_getaffinity(porter.process_id)
        yields = os.getpriority(os.PRIO_PROCESS, porter.process_id) - os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        os.sched_setaffinity(0, everywhere)
    while not answering:  # the porter yields, and on a busy machine a handshake may take longer than it may
        with suppress(ConnectionError):
            target.ask(HOST, porter.port, PinQuery(export_id=EXPORT))
    porter.close()
    wanted = (everywhere - bound or bound) if aside else bound
    assert (found, answering) == (wanted, [wanted])
    assert yields == (min(5, 19 - os.getpriority(os.PRIO_PROCESS, 0)) if aside else 0)


def test_a_porter_that_dies_is_replaced(engines):
    source, target, pins, puller, *_ = engines
    for each in (source, target):
        before = each.process_id
        os.kill(before, signal.SIGKILL)
        loaded(puller, ticket(source, pins))  # it fails, or the next porter takes it up: the port is the worker's
        while each.process_id == before:
            time.sleep(0.02)
    assert loaded(puller, ticket(source, pins)).fault == ""


def _elsewhere(there: Ticket, port: int) -> Ticket:
    (one,) = there.sources
    return there.model_copy(update={"sources": (one.model_copy(update={"port": port}),)})
