"""What the soak counts and draws, and how its proxy misbehaves."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from e2e.soak.interruptions import NOTICES_S, End, Fault, draw
from e2e.soak.ledger import Difference, Growth, Ledger, difference, load, save
from e2e.soak.proxy import Mode, Proxy


@pytest.mark.parametrize(
    ("got", "found"),
    [
        ("abcdef", Difference()),
        ("", Difference(lost=6)),
        ("abcd", Difference(lost=2)),
        ("abef", Difference(lost=2)),
        ("abccdef", Difference(duplicated=1)),
        ("abcdcdef", Difference(duplicated=2)),
        ("abxdef", Difference(differing=1)),
        ("abxyz", Difference(lost=1, differing=3)),
    ],
    ids=["same", "nothing", "end missing", "middle missing", "one twice", "two twice", "one other", "another end"],
)
def test_what_an_answer_lost_doubled_or_changed(got, found):
    assert difference(list(got), list("abcdef")) == found


def test_counts_survive_a_restart_and_kinds_stay_apart(tmp_path):
    path = tmp_path / "build" / "soak.json"
    one = load(path, "stub")
    one.interruptions, one.tokens = 3, 900
    one.notices["0.5"] += 2
    one.router.append(Growth(90.0, 91.0, 20, 21))
    one.failed("words")
    save(path, "stub", one)
    other = load(path, "vllm")
    other.lost = 1
    save(path, "vllm", other)
    assert load(path, "stub") == one
    assert load(path, "stub").clean
    assert not load(path, "vllm").clean


def test_only_so_many_failures_are_kept_in_words():
    ledger = Ledger()
    for number in range(100):
        ledger.failed(str(number))
    assert ledger.failures == [str(number) for number in range(50)]


def test_a_thousand_interruptions_are_the_same_each_time_and_have_everything_in_them():
    drawn = [draw(number, kills=0.15) for number in range(1000)]
    assert drawn == [draw(number, kills=0.15) for number in range(1000)]
    assert {each.notice_s for each in drawn} == set(NOTICES_S)
    assert {each.end for each in drawn} == set(End)
    assert {each.fault for each in drawn} == set(Fault)
    assert 100 <= sum(each.end is not End.CUT for each in drawn) <= 200


@asynccontextmanager
async def echoing():
    """Yield a proxy before a server that answers each line, and the server's count of connections."""
    open_now = set()

    async def answer(reader, writer):
        open_now.add(writer)
        try:
            while line := await reader.readline():
                writer.write(line)
        except ConnectionError:
            pass
        finally:
            open_now.discard(writer)
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Proxy(throttle_bytes_per_s=1000) as proxy:
        proxy.put_before(server.sockets[0].getsockname()[1])
        yield proxy, open_now


async def said(connection, text, seconds=20.0):
    reader, writer = connection
    writer.write(text.encode() + b"\n")
    try:
        async with asyncio.timeout(seconds):
            return (await reader.readline()).decode().strip()
    except TimeoutError:
        return None
    except ConnectionError:
        return "reset"


async def test_what_passes_waits_or_is_reset():
    async with echoing() as (proxy, open_now):
        connection = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await said(connection, "a") == "a"
        proxy.set(Mode.DROP)
        assert await said(connection, "b", 0.3) is None
        proxy.set(Mode.THROTTLE)
        assert (await connection[0].readline()).strip() == b"b"  # it had waited
        proxy.set(Mode.PASS)
        assert await said(connection, "c") == "c"
        proxy.reset()
        assert await said(connection, "d") in {"reset", ""}
        again = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await said(again, "e") == "e"
        proxy.set(Mode.REFUSE)
        assert await said(again, "f") in {"reset", ""}
        for _ in range(200):
            if not open_now:
                break
            await asyncio.sleep(0.02)
        assert not open_now


async def test_half_open_what_is_answered_vanishes_and_the_connection_ends_with_it():
    async with echoing() as (proxy, _):
        connection = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await said(connection, "a") == "a"
        proxy.set(Mode.HALF_OPEN)
        assert await said(connection, "b", 0.3) is None
        proxy.set(Mode.PASS)
        assert await said(connection, "c") in {"reset", ""}
