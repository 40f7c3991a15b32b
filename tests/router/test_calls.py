"""Connections to engines: when one serves the next call, and what the caller is told when one breaks."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from medley.router import calls
from medley.router.calls import Calls, UnreachableError
from tests.router.test_server import until

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


class Engine:
    """Answers each call with the next of `answers`: bytes, written one by one; None closes, an event is waited for."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.connections = 0
        self.asked = []
        self.gone = asyncio.Event()  # a connection was closed by the router
        self._serving = set()

    async def serve(self, reader, writer):
        self.connections += 1
        self._serving.add(asyncio.current_task())
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionResetError):
            self.gone.set()
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.transport.abort()

    async def _answer(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.asked.append((head, await reader.readexactly(length)))
        for part in self.answers.pop(0):
            if part is None:
                writer.close()
                return False
            if isinstance(part, asyncio.Event):
                await part.wait()
                continue
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        return True

    @asynccontextmanager
    async def called(self, path=""):
        """Yield a caller and this engine's URL."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        client = Calls(lambda: pytest.fail("no TLS here"))
        try:
            yield client, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
        finally:
            client.close()
            server.close()
            for each in self._serving:
                each.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)


async def ask(client, url, body=b"{}"):
    """Ask once and read to the end."""
    answer = await client.post(url, "/p", None, body)
    try:
        return answer.status, await answer.read()
    finally:
        answer.leave(ended=False)


async def fed(answer, enough=lambda _: False):
    """Return what `feed` gave and whether it was enough."""
    taken = bytearray()

    def take(block):
        taken.extend(block)
        return enough(bytes(taken))

    return await answer.feed(take), bytes(taken)


async def test_calls_follow_one_another_on_one_connection():
    engine = Engine([CHUNKED, chunk(b"a"), chunk(b"b") + END], [HEAD + b"Content-Length: 2\r\n\r\n", b"cd"])
    async with engine.called("/prefix/") as (client, url):
        assert await ask(client, url, b"{1}") == (200, b"ab")
        answer = await client.post(url, "/q", "secret", b"{2}")
        assert await fed(answer) == (False, b"cd")
        answer.leave(ended=True)
    authority = url.removeprefix("http://").removesuffix("/prefix/").encode()
    common = b" HTTP/1.1\r\nHost: %b\r\nAccept: */*\r\n" % authority
    kind = b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n"
    assert engine.connections == 1
    assert engine.asked == [
        (b"POST /prefix/p" + common + kind, b"{1}"),
        (b"POST /prefix/q" + common + b"Authorization: Bearer secret\r\n" + kind, b"{2}"),
    ]


@pytest.mark.parametrize(
    ("status", "early"), [(b"200 OK", b"a"), (b"500 No", b"")], ids=["an answer", "what went wrong"]
)
async def test_what_comes_with_the_head_is_fed_before_anybody_wakes(status, early):
    taken = bytearray()
    engine = Engine([b"HTTP/1.1 %b\r\nContent-Length: 1\r\n\r\na" % status])
    async with engine.called() as (client, url):
        answer = await client.post(url, "/p", None, b"{}", lambda block: bool(taken.extend(block)))
        assert (bytes(taken), await answer.read()) == (early, b"a".removeprefix(early))
        answer.leave(ended=True)


async def test_what_follows_a_finish_is_waited_for_and_the_connection_kept():
    finished = asyncio.Event()
    engine = Engine([CHUNKED, chunk(b"finish"), finished, chunk(b"[DONE]") + END], [CHUNKED + END])
    async with engine.called() as (client, url):
        answer = await client.post(url, "/p", None, b"{}")
        assert await fed(answer, lambda taken: taken == b"finish") == (True, b"finish")
        answer.leave(ended=True)
        finished.set()
        await until(lambda: client._idle)
        assert await ask(client, url) == (200, b"")
    assert engine.connections == 1


async def test_what_follows_a_finish_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(calls, "_TAIL_SECONDS", 0.01)
    engine = Engine([CHUNKED, chunk(b"finish"), asyncio.Event()])
    async with engine.called() as (client, url), asyncio.timeout(10):
        answer = await client.post(url, "/p", None, b"{}")
        await fed(answer, lambda taken: taken == b"finish")
        answer.leave(ended=True)
        await until(answer._transport.is_closing)
    assert client._idle == {}


async def test_who_leaves_early_ends_the_engines_work():
    engine = Engine([CHUNKED, chunk(b"a")])
    async with engine.called() as (client, url), asyncio.timeout(10):
        answer = await client.post(url, "/p", None, b"{}")
        await fed(answer, lambda _: True)
        answer.leave(ended=False)
        await engine.gone.wait()


@pytest.mark.parametrize("answered", [[], [CHUNKED], [CHUNKED, chunk(b"a")]], ids=["no head", "a head", "a body"])
async def test_who_is_cancelled_ends_the_engines_work(answered):
    engine = Engine([*answered])
    async with engine.called() as (client, url), asyncio.timeout(10):
        asking = asyncio.create_task(ask(client, url))
        await until(lambda: engine.asked)
        await asyncio.sleep(0.01)
        asking.cancel()
        await engine.gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([None], id="nothing"),
        pytest.param([b"HTTP/1.1 200", None], id="half a head"),
        pytest.param([CHUNKED, chunk(b"a"), None], id="no last chunk"),
        pytest.param([CHUNKED, b"5\r\nab", None], id="half a chunk"),
        pytest.param([HEAD + b"Content-Length: 3\r\n\r\nab", None], id="less than its length"),
        pytest.param([b"SSH-2.0-x\r\n"], id="no HTTP"),
        pytest.param([CHUNKED, b"z\r\n"], id="no chunk"),
        pytest.param([b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"], id="upgrade"),
    ],
)
async def test_an_answer_that_is_not_whole_is_a_broken_connection(answer):
    async with Engine(answer).called() as (client, url), asyncio.timeout(10):
        with pytest.raises(ConnectionError) as broken:
            await ask(client, url)
    assert not isinstance(broken.value, UnreachableError)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([HEAD + b"\r\nabc", None], id="its end is the connection's"),
        pytest.param([HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", None], id="close"),
        pytest.param([HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc"], id="close, and it stays"),
        pytest.param([b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", None], id="HTTP/1.0"),
        pytest.param([HEAD + b"Content-Length: 3\r\n\r\nabcHTTP/1.1 408 Late\r\n\r\n"], id="more than was asked"),
        pytest.param([HEAD + b"Content-Length: 3\r\n\r\nabc#"], id="noise after it"),
    ],
)
async def test_a_connection_that_will_not_last_serves_one_call(answer):
    engine = Engine(answer, [HEAD + b"Content-Length: 0\r\n\r\n"])
    async with engine.called() as (client, url), asyncio.timeout(10):
        assert await ask(client, url) == (200, b"abc")
        assert await ask(client, url) == (200, b"")
    assert engine.connections == 2


async def test_what_comes_between_calls_belongs_to_none():
    late = asyncio.Event()
    engine = Engine(
        [HEAD + b"Content-Length: 1\r\n\r\na", late, HEAD + b"Content-Length: 1\r\n\r\nx"],
        [HEAD + b"Content-Length: 1\r\n\r\nb"],
    )
    async with engine.called() as (client, url), asyncio.timeout(10):
        assert await ask(client, url) == (200, b"a")
        late.set()
        await until(lambda: not client._idle)
        assert await ask(client, url) == (200, b"b")
    assert engine.connections == 2


async def test_what_comes_before_the_final_answer_says_nothing():
    engine = Engine([b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", HEAD + b"Content-Length: 1\r\n\r\na"])
    async with engine.called() as (client, url), asyncio.timeout(10):
        assert await ask(client, url) == (200, b"a")


async def test_idle_connections_are_closed_before_the_engine_does(monkeypatch):
    monkeypatch.setattr(calls, "KEPT_SECONDS", 0.01)
    engine = Engine([CHUNKED + END])
    async with engine.called() as (client, url), asyncio.timeout(10):
        assert await ask(client, url) == (200, b"")
        await engine.gone.wait()
        await until(lambda: not client._idle)


async def test_what_the_taker_raises_is_raised_to_who_waits():
    engine = Engine([CHUNKED + chunk(b"a") + END], [CHUNKED, chunk(b"a")])
    async with engine.called() as (client, url), asyncio.timeout(10):
        for _ in range(2):
            answer = await client.post(url, "/p", None, b"{}")
            with pytest.raises(ZeroDivisionError):
                await answer.feed(lambda _: 1 / 0)
            answer.leave(ended=False)
    assert engine.connections == 2


async def test_who_has_enough_is_not_told_that_the_connection_broke_after_that():
    engine = Engine([CHUNKED + chunk(b"finish"), None])
    async with engine.called() as (client, url), asyncio.timeout(10):
        answer = await client.post(url, "/p", None, b"{}")

        def take(_):
            answer.connection_lost(ConnectionResetError())
            return True

        assert await answer.feed(take) is True
        answer.leave(ended=True)
        await until(lambda: not client._open)


async def test_no_connection_is_told_from_a_broken_one(unused_tcp_port):
    client = Calls(lambda: pytest.fail("no TLS here"))
    with pytest.raises(UnreachableError, match=f"connecting to 127.0.0.1:{unused_tcp_port}: "):
        await ask(client, f"http://127.0.0.1:{unused_tcp_port}")
    client.close()
