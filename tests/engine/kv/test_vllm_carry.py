"""Two real vLLM engines: running requests go from one to the other and end as if nothing had happened.

The test model's output depends on every token before it, so equal tokens mean that the KV was right. One pair of
engines, which speak TLS with each other, serves all tests of this module; the last one kills the first engine.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Self

import aiohttp
import pytest
import pytest_asyncio

from e2e.vllm_venv import ensure_venv
from medley.core.identity import Role
from medley.testing.certificates import Issuer
from medley.wire.ticket import EXPORT_PATH, RELEASE_PATH
from tests.engine.kv.engines import engines
from tests.model import ensure_model

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

TOKENS, CUT, STREAMS = 40, 10, 36  # more streams than the 32 that run at once


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(7 * i * i + (13 + seed) * i + 5 + 11 * seed) % 500 + 3 for i in range(length)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(tmp_path_factory):
    python, model = await asyncio.to_thread(ensure_venv), await asyncio.to_thread(ensure_model)
    folder = tmp_path_factory.mktemp("engines")
    tls = {"MEDLEY_TLS_DIR": str(Issuer.new().folder(folder / "tls", Role.ENGINE)), "MEDLEY_KV_HOST": "127.0.0.1"}
    async with engines(folder, python, model, tls, source=(), target=()) as started:
        yield started


async def gained(engine, before):
    after = await engine.prompt_tokens()
    return {source: after[source] - before[source] for source in after}


async def cut(engine, name, tokens, at=CUT, most=TOKENS, **sampling):
    """A stream that was exported once it had some tokens, and its ticket."""
    stream = engine.stream(name, tokens, max_tokens=most, **sampling)
    await stream.at_least(at)
    exported = await engine.export([name])
    await stream.rest()
    assert (stream.finish_reason, exported["unknown"]) == ("abort", [])
    (ticket,) = exported["tickets"]
    # The client got every token that the engine had sampled, and the cache has all of them but the last.
    assert ticket["valid_tokens"] == len(tokens) + len(stream.tokens) - 1
    return stream, ticket


async def test_both_engines_say_what_they_can_do(pair):
    states = [await engine.state() for engine in pair]
    assert [(each["mode"], each["capable"], each["reason"], each["exports"]) for each in states] == [
        ("Live", True, "", 0)
    ] * 2
    assert states[0]["numerics"] == states[1]["numerics"]
    assert all(each["free_blocks"] == each["total_blocks"] > 0 for each in states)


@pytest.mark.parametrize("sampling", [
    pytest.param({}, id="greedy"),
    pytest.param({"logprobs": 2}, id="logprobs"),
    pytest.param({"presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.2}, id="penalties"),
    pytest.param({"temperature": 1.0, "seed": 7}, id="seeded"),
    pytest.param({"temperature": 0.9, "seed": 8, "top_p": 0.9, "top_k": 40, "frequency_penalty": 0.5}, id="seeded, penalties"),
    pytest.param({"structured_outputs": {"regex": "(ab|ba|fox)( (the|lazy) [a-z]{3}){16}"}}, id="regex"),
    pytest.param({"structured_outputs": {"json": {
        "type": "object", "additionalProperties": False, "required": ["a"],
        "properties": {"a": {"type": "array", "minItems": 12, "maxItems": 12, "items": {"type": "integer", "minimum": 100, "maximum": 999}}},
    }}}, id="json schema"),
    pytest.param({"min_tokens": 30, "ignore_eos": False, "stop_token_ids": list(range(3, 120))}, id="min_tokens"),
])  # fmt: skip
async def test_a_carried_request_goes_on_as_if_never_cut(pair, sampling, request):
    source, target = pair
    name, tokens = request.node.callspec.id.replace(" ", "-"), prompt(300, seed=1)
    reference = source.stream(f"reference-{name}", tokens, max_tokens=TOKENS, **sampling)
    whole = await reference.rest()
    assert len(whole) > CUT + 5
    stream, ticket = await cut(source, name, tokens, **sampling)
    before = await target.prompt_tokens()
    rest = target.stream(name, tokens, stream.tokens, ticket, max_tokens=TOKENS, **sampling)
    assert stream.tokens + await rest.rest() == whole
    assert rest.finish_reason == reference.finish_reason
    assert stream.logprobs + rest.logprobs == pytest.approx(reference.logprobs, abs=1e-5)
    # All but the last token came over, or had come before by another case of this test.
    counted = await gained(target, before)
    assert counted["local_compute"] == 1
    assert counted["external_kv_transfer"] + counted["local_cache_hit"] == ticket["valid_tokens"]
    assert await source.release(ticket["export_id"]) == {"exports": [ticket["export_id"]], "unknown": []}
    assert await source.release(ticket["export_id"]) == {"exports": [], "unknown": [ticket["export_id"]]}


async def test_many_streams_leave_at_once_running_and_waiting(pair):
    source, target = pair
    prompts = {f"many-{index}": prompt(80 + 7 * index, seed=10 + index) for index in range(STREAMS)}
    references = {
        name: source.stream(f"reference-{name}", tokens, max_tokens=TOKENS) for name, tokens in prompts.items()
    }
    whole = {name: await reference.rest() for name, reference in references.items()}
    streams = {name: source.stream(name, tokens, max_tokens=TOKENS) for name, tokens in prompts.items()}
    await streams["many-0"].at_least(CUT)
    exported = await source.export()
    await asyncio.gather(*(stream.rest() for stream in streams.values()))
    tickets = {ticket["request_id"]: ticket for ticket in exported["tickets"]}
    assert tickets.keys() == streams.keys()
    assert {stream.finish_reason for stream in streams.values()} == {"abort"}
    assert any(ticket["valid_tokens"] == 0 for ticket in tickets.values())  # those that had been waiting
    rests = await asyncio.gather(*(
        target.tokens(name, prompts[name], stream.tokens, tickets[name], max_tokens=TOKENS) for name, stream in streams.items()
    ))  # fmt: skip
    for (name, stream), rest in zip(streams.items(), rests, strict=True):
        assert (name, stream.tokens + rest) == (name, whole[name])
    pinned = [ticket["export_id"] for ticket in tickets.values() if ticket["valid_tokens"]]
    assert (await source.release(*pinned))["unknown"] == []
    states = [await engine.state() for engine in pair]
    assert [(each["exports"], each["pinned_blocks"], each["free_blocks"]) for each in states] == [
        (0, 0, each["total_blocks"]) for each in states
    ]


async def test_the_prefix_goes_ahead_while_the_source_decodes(pair):
    source, target = pair
    tokens = prompt(640, seed=2)
    whole = await source.tokens("reference-ahead", tokens, max_tokens=TOKENS)
    stream = source.stream("ahead", tokens, max_tokens=TOKENS)
    await stream.at_least(5)
    before = await target.prompt_tokens()
    (ahead,) = (await source.export(["ahead"], keep_running=True))["tickets"]
    history = tokens + whole  # what the source will have sampled by then
    await target.tokens("ahead-copy", history[: ahead["valid_tokens"] + 1], (), ahead, max_tokens=1)
    assert await gained(target, before) == {
        "local_compute": 1, "local_cache_hit": 0, "external_kv_transfer": ahead["valid_tokens"],
    }  # fmt: skip
    before = await target.prompt_tokens()
    (ticket,) = (await source.export(["ahead"]))["tickets"]
    await stream.rest()
    rest = await target.tokens("ahead", tokens, stream.tokens, ticket, max_tokens=TOKENS)
    assert stream.tokens + rest == whole
    there = ahead["valid_tokens"] // ticket["block_size"] * ticket["block_size"]
    assert await gained(target, before) == {
        "local_compute": 1, "local_cache_hit": there, "external_kv_transfer": ticket["valid_tokens"] - there,
    }  # fmt: skip
    await source.release(ahead["export_id"], ticket["export_id"])


async def test_a_request_is_exported_in_the_middle_of_its_prefill(pair):
    source, target = pair
    tokens = prompt(3500, seed=3)
    stream = source.stream("prefill", tokens, max_tokens=8)
    while not (exported := await source.export(["prefill"], keep_running=True))["tickets"]:  # noqa: ASYNC110 - it is in another process
        await asyncio.sleep(0)
    (ahead,) = exported["tickets"]
    (ticket,) = (await source.export(["prefill"]))["tickets"]
    await stream.rest()
    whole = await source.tokens("reference-prefill", tokens, max_tokens=8)
    before = await target.prompt_tokens()
    assert stream.tokens + await target.tokens("prefill", tokens, stream.tokens, ticket, max_tokens=8) == whole
    counted = await gained(target, before)
    assert counted["external_kv_transfer"] == ticket["valid_tokens"]
    assert counted["local_compute"] == len(tokens) + len(stream.tokens) - ticket["valid_tokens"]
    exports = [each["export_id"] for each in (ahead, ticket) if each["valid_tokens"]]
    assert (await source.release(*exports))["unknown"] == []


async def test_a_lease_ends_by_itself_on_an_idle_engine(pair):
    source, _ = pair
    stream, ticket = await cut(source, "lease", prompt(100, seed=4))
    del stream
    assert (await source.state())["pinned_blocks"] == len(ticket["blocks"])
    assert (await source.renew(ticket["export_id"], lease_s=0.5))["exports"] == [ticket["export_id"]]
    line = "exports ran out and were given back"
    while line not in source.tail():  # noqa: ASYNC110 - nothing is asked of the engine meanwhile
        await asyncio.sleep(0.1)
    state = await source.state()
    assert (state["exports"], state["pinned_blocks"], state["free_blocks"]) == (0, 0, state["total_blocks"])
    assert (await source.renew(ticket["export_id"]))["unknown"] == [ticket["export_id"]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def left(pair):
    """A stream that left the source: what it would have been, what it was, and its ticket."""
    source, _ = pair
    tokens = prompt(150, seed=9)
    whole = await source.tokens("reference-left", tokens, max_tokens=TOKENS)
    return whole, tokens, *(await cut(source, "left", tokens))


@pytest.mark.parametrize("spoilt", [
    pytest.param(lambda ticket: "nonsense", id="no ticket"),
    pytest.param(lambda ticket: ticket | {"blocks": [*ticket["blocks"][1:], 4094]}, id="other blocks"),
    pytest.param(lambda ticket: ticket | {"tokens": "0" * 64}, id="other tokens"),
    pytest.param(lambda ticket: ticket | {"model": "0" * 64}, id="another model"),
    pytest.param(lambda ticket: ticket | {"numerics": "0" * 64}, id="other numbers"),
    pytest.param(lambda ticket: ticket | {"export_id": "0" * 32}, id="another export"),
    pytest.param(lambda ticket: ticket | {"valid_tokens": 10**6}, id="too many tokens"),
    pytest.param(lambda ticket: ticket | {"sources": [ticket["sources"][0] | {"layers": ["x"]}]}, id="other layers"),
    pytest.param(lambda ticket: ticket | {"sources": [ticket["sources"][0] | {"port": 1}]}, id="nobody there"),
    pytest.param(lambda ticket: ticket | {"pins": ticket["pins"] | {"port": 1}}, id="nobody to confirm"),
])  # fmt: skip
async def test_a_ticket_that_does_not_hold_costs_a_prefill_and_nothing_else(pair, left, spoilt, request):
    target = pair[1]
    whole, tokens, stream, ticket = left
    name = request.node.callspec.id.replace(" ", "-")
    before = await target.prompt_tokens()
    # A salt of its own, so that nothing is cached.
    rest = await target.tokens(name, tokens, stream.tokens, spoilt(ticket), salt=name, max_tokens=TOKENS)
    assert stream.tokens + rest == whole
    counted = await gained(target, before)
    assert (counted["external_kv_transfer"], counted["local_compute"]) == (0, len(tokens) + len(stream.tokens))


async def test_the_same_ticket_unspoilt_holds(pair, left):
    source, target = pair
    whole, tokens, stream, ticket = left
    before = await target.prompt_tokens()
    rest = await target.tokens("unspoilt", tokens, stream.tokens, ticket, salt="unspoilt", max_tokens=TOKENS)
    assert stream.tokens + rest == whole
    assert (await gained(target, before))["external_kv_transfer"] == ticket["valid_tokens"]
    assert (await source.release(ticket["export_id"]))["unknown"] == []


async def test_blocks_that_were_released_are_not_read(pair):
    source, target = pair
    tokens = prompt(150, seed=5)
    whole = await source.tokens("reference-released", tokens, max_tokens=TOKENS)
    stream, ticket = await cut(source, "released", tokens)
    await source.release(ticket["export_id"])
    await source.tokens("other", prompt(2000, seed=6), max_tokens=4)  # which may take the blocks
    assert stream.tokens + await target.tokens("released", tokens, stream.tokens, ticket, max_tokens=TOKENS) == whole


async def test_a_load_that_fails_where_more_than_the_prompt_was_copied_ahead_costs_the_rest(pair):
    source, target = pair
    tokens, most = prompt(40, seed=10), 120
    whole = await source.tokens("reference-failed", tokens, max_tokens=most)
    stream, ticket = await cut(source, "failed", tokens, at=40, most=most)
    history = tokens + stream.tokens
    there = (len(history) - 1) // ticket["block_size"] * ticket["block_size"]
    assert there > len(tokens)
    await target.tokens("failed-copy", history[: there + 1], max_tokens=1)
    await source.release(ticket["export_id"])  # so the load will fail
    before = await target.prompt_tokens()
    assert stream.tokens + await target.tokens("failed", tokens, stream.tokens, ticket, max_tokens=most) == whole
    assert await gained(target, before) == {
        "local_compute": len(history) - there, "local_cache_hit": there, "external_kv_transfer": 0,
    }  # fmt: skip


async def test_a_request_that_is_loading_can_leave_again(pair):
    source, target = pair
    tokens = prompt(150, seed=7)
    whole = await source.tokens("reference-again", tokens, max_tokens=TOKENS)
    stream, ticket = await cut(source, "again", tokens)
    with Trap(ticket) as trap:
        waiting = target.stream("again", tokens, stream.tokens, trap.ticket, max_tokens=TOKENS)
        await asyncio.to_thread(trap.reached.wait)
        (nothing,) = (await target.export(["again"]))["tickets"]
        assert nothing["valid_tokens"] == 0  # what it waits for is not there
    assert (await waiting.rest(), waiting.finish_reason) == ([], "abort")
    assert stream.tokens + await target.tokens("again", tokens, stream.tokens, ticket, max_tokens=TOKENS) == whole
    await source.release(ticket["export_id"])
    state = await target.state()
    assert state["free_blocks"] == state["total_blocks"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (EXPORT_PATH, {"requests": "one"}, 422, "requests"),
        (EXPORT_PATH, {"lease_s": -1}, 422, "lease_s"),
        (EXPORT_PATH, {"more": 1}, 422, "more"),
        (RELEASE_PATH, {}, 422, "exports"),
        (RELEASE_PATH, {"exports": ["../x"]}, 422, "exports.0"),
        (EXPORT_PATH, {"requests": ["x" * 500] * 12000}, 413, "body"),
        (EXPORT_PATH, {"requests": []}, 200, "tickets"),
        (RELEASE_PATH, {"exports": ["unknown"]}, 200, "unknown"),
    ],
    ids=["a name", "no time", "more", "nothing", "no id", "too long", "none", "unknown"],
)
async def test_what_is_asked_wrongly_is_refused_by_name(pair, path, body, status, said):
    assert said in str(await pair[0].post(path, body, status))


async def test_nobody_exports_without_the_key(pair):
    async with aiohttp.ClientSession() as stranger, stranger.post(pair[0].url + EXPORT_PATH, json={}) as answer:
        assert answer.status == 401


async def test_a_source_that_is_killed_in_the_middle_of_a_load_costs_a_prefill(pair):
    """Last: it ends the source."""
    source, target = pair
    tokens = prompt(900, seed=8)
    whole = await source.tokens("reference-killed", tokens, max_tokens=TOKENS)
    stream, ticket = await cut(source, "killed", tokens)
    with Trap(ticket) as trap:
        rest = target.stream("killed", tokens, stream.tokens, trap.ticket, max_tokens=TOKENS)
        await asyncio.to_thread(trap.reached.wait)
        source.kill()
    assert stream.tokens + await rest.rest() == whole
    state = await target.state()
    assert state["free_blocks"] == state["total_blocks"]


class Trap:
    """Between the engines: lets a part of the first read through and stops, until the block ends."""

    def __init__(self, ticket, through: int = 100_000) -> None:
        (source,) = ticket["sources"]
        self.reached = threading.Event()
        self._goal, self._through = (source["host"], source["port"]), through
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.ticket = ticket | {"sources": [source | {"port": self._listening.getsockname()[1]}]}
        self._open = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._threads.append(threading.Thread(target=self._accept, daemon=True))
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._carry, args=(near,), daemon=True))
            self._threads[-1].start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._goal) as far:
            self._threads.append(threading.Thread(target=_forward, args=(near, far), daemon=True))
            self._threads[-1].start()
            left = self._through
            with suppress(OSError):  # either side may be gone
                while left and (piece := far.recv(min(left, 1 << 16))):
                    near.sendall(piece)
                    left -= len(piece)
                self.reached.set()
                self._open.wait(60)
            for sock in (near, far):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def _forward(near: socket.socket, far: socket.socket) -> None:
    with suppress(OSError):
        while piece := near.recv(1 << 16):
            far.sendall(piece)
