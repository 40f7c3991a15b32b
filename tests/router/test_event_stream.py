"""A streamed answer on the wire: its head, its frames, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import re

import pytest
from aiohttp import web

from medley.router.event_stream import EventStream

HEAD = b"x-told: yes\r\nContent-Type: text/event-stream\r\nDate: D\r\nServer: S\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"


async def two_events(stream):
    stream.send(b"data: 1\n\n")
    stream.send(b"")
    stream.send(b"data: 2\n\n", last=True)
    await stream.end(b"data: [DONE]\n\n")


async def one_event(stream):
    stream.send(b"data: 1\n\n", last=True)
    await stream.end(b"data: [DONE]\n\n")


async def no_event(stream):
    await stream.end(b"data: [DONE]\n\n")


async def worded_ahead(stream):
    stream.word_head()
    await no_event(stream)


async def broken_after_an_event(stream):
    stream.send(b"data: 1\n\n")
    raise RuntimeError("a bug")


async def refused_before_an_event(_):
    raise web.HTTPConflict(text="no")


async def read(say, asked, *, leaving=False, ends=True):
    """Send bytes to a server whose answers `say` gives; return what comes back, to the end or for two answers."""

    async def answer(request):
        stream = EventStream(request, lambda: {"x-told": "yes"}, lambda: leaving)
        await say(stream)
        return stream

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    try:
        async with asyncio.timeout(10):
            writer.write(asked)
            raw = await (reader.read() if ends else reader.readuntil(b"\r\n0\r\n\r\n"))
            if not ends:
                writer.write(asked)
                raw += await reader.readuntil(b"\r\n0\r\n\r\n")
    finally:
        writer.close()
        await runner.cleanup()
    return re.sub(rb"Server: [^\r]*", b"Server: S", re.sub(rb"Date: [^\r]*", b"Date: D", raw))


ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
TWO = b"9\r\ndata: 1\n\n\r\n17\r\ndata: 2\n\ndata: [DONE]\n\n\r\n0\r\n\r\n"
ONE = b"9\r\ndata: 1\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
NONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
OK, END = b"HTTP/1.1 200 OK\r\n", b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("say", "framed"),
    [
        pytest.param(two_events, TWO, id="the last goes out with the end"),
        pytest.param(one_event, ONE, id="the first waits for nothing"),
        pytest.param(no_event, NONE, id="no event"),
        pytest.param(worded_ahead, NONE, id="its head worded ahead"),
    ],
)
async def test_answers_follow_one_another_on_one_connection(say, framed):
    once = OK + CHUNKED + b"\r\n" + framed
    assert await read(say, ASKED, ends=False) == once + once


@pytest.mark.parametrize(("asked", "leaving"), [(CLOSING, False), (ASKED, True)], ids=["client", "router"])
async def test_the_connection_ends_where_one_side_leaves(asked, leaving):
    assert await read(two_events, asked, leaving=leaving) == OK + CHUNKED + END + TWO


async def test_to_a_client_that_knows_no_chunks_the_end_is_that_of_the_connection():
    events = b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert await read(two_events, OLD) == b"HTTP/1.0 200 OK\r\n" + HEAD + END + events


async def test_an_answer_that_breaks_in_the_middle_has_no_end():
    assert await read(broken_after_an_event, ASKED) == OK + CHUNKED + b"\r\n9\r\ndata: 1\n\n\r\n"


async def test_before_the_first_event_another_answer_can_be_given():
    head, _, body = (await read(refused_before_an_event, CLOSING)).partition(b"\r\n\r\n")
    assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 409 Conflict", b"no")
