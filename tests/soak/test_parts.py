"""What the soak counts and draws, and how its proxy misbehaves."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from bench.soak import rows
from e2e.soak import leaks
from e2e.soak.held import Held, counted_mib, held
from e2e.soak.interruptions import AFTER_THE_CUT_S, BETWEEN_ENGINES, NOTICES_S, End, Fault, draw
from e2e.soak.leaks import Leaks
from e2e.soak.ledger import Difference, Growth, Ledger, difference, load, save
from e2e.soak.loads import Loads
from e2e.soak.proxy import Mode, Proxy
from medley.engine.kv.connections import STALL_S


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


def test_a_bench_shows_every_count_and_no_run_proves_nothing():
    ledger = Ledger(interruptions=1000, seconds=9000, sigkills=120, streams=9, broken=1)
    ledger.faults.update({"kv-drop": 57, "none": 943})
    ledger.loads["carried"] = 5
    shown = {each.name: (each.value, each.met) for each in rows(ledger)}
    assert shown["soak/interruptions"] == (1000, True)
    assert shown["soak/requests broken"] == (1, False)
    assert shown["soak/tokens lost"] == (0, True)
    assert shown["soak/faults: kv-drop"] == (57, None)
    assert shown["soak/loads: carried"] == (5, None)
    assert {each.met for each in rows(Ledger())} == {False, None}


def test_only_so_many_failures_are_kept_in_words():
    ledger = Ledger()
    for number in range(100):
        ledger.failed(str(number))
    assert ledger.failures == [str(number) for number in range(50)]


def test_a_thousand_interruptions_are_the_same_each_time_and_have_everything_in_them():
    drawn = [draw(number, kills=0.1) for number in range(1000)]
    assert drawn == [draw(number, kills=0.1) for number in range(1000)]
    assert {each.notice_s for each in drawn} == set(NOTICES_S)
    assert {each.end for each in drawn} == set(End)
    assert {each.fault for each in drawn} == set(Fault)
    assert 100 <= sum(each.end is not End.CUT for each in drawn) <= 150
    silent = {Fault.KV_DROP, Fault.KV_HALF_OPEN}
    assert sum(each.fault in silent and each.fault_s > STALL_S for each in drawn) >= 20


def test_faults_between_engines_are_drawn_only_where_blocks_are_read_and_rules_can_be_made():
    drawn = [draw(number, kills=0.1, between_engines={Fault.KV_RESET}) for number in range(1000)]
    assert {each.fault for each in drawn} == set(Fault) - BETWEEN_ENGINES | {Fault.KV_RESET}
    assert all(each.notice_s > 0 for each in drawn if each.fault in BETWEEN_ENGINES)


def test_a_process_is_killed_within_the_move_it_belongs_to():
    drawn = [draw(number, kills=0.1) for number in range(1000)]
    for each in drawn:
        at_s = each.kill_at_s(each.notice_s)
        assert (at_s is None) == (each.end is End.CUT)
        if at_s is not None:
            assert 0 <= at_s <= each.notice_s + (AFTER_THE_CUT_S if each.end is End.TARGET_KILL else 0)


def test_loads_are_counted_once_and_reasons_that_differ_in_a_number_are_one(tmp_path):
    log, ledger = tmp_path / "e0-1.log", Ledger()
    counted = Loads(ledger, tmp_path)
    log.write_text("INFO medley: carried ab-1: 1.60 MB in 11.0 ms\nWARNING medley: ab-2 is computed, not carried: ti")
    counted.read()
    assert ledger.loads == {"carried": 1}
    with log.open("a") as more:
        more.write(
            "med out\nx medley: c is computed, not carried: 5 of 7\nx medley: d is computed, not carried: 6 of 7\n"
        )
    counted.read()
    counted.read()
    assert ledger.loads == {"carried": 1, "computed: timed out": 1, "computed: # of #": 2}
    assert ledger.clean


def test_an_engine_that_ends_by_itself_is_no_clean_soak(tmp_path):
    ledger = Ledger(interruptions=7)
    counted = Loads(ledger, tmp_path)
    (tmp_path / "e1-2.log").write_text(
        "medley| Starting -> Serving\nmedley| Serving -> Starting vLLM ended with status 0\nmedley| Starting -> Serving\n"
    )
    counted.read()
    counted.read()
    assert (ledger.deaths, ledger.clean) == (1, False)
    assert ledger.failures == ["to 7: e1-2 died: vLLM ended with status 0"]


async def test_a_process_is_held_against_itself_from_the_second_look_on(monkeypatch):
    grown = iter([100.0, 500.0, 560.0, 600.0])
    monkeypatch.setattr(leaks, "held", lambda _: Held(next(grown), 20))
    ledger = Ledger()
    watched = Leaks(ledger)
    for _ in range(3):
        await watched.look(None, 1, [], 0)
    assert ledger.router == [Growth(500.0, 560.0, 20, 20)]
    assert ledger.clean
    await watched.look(None, 1, [], 0)
    assert ledger.leaked_mib == 36.0


def test_memory_is_what_a_process_has_itself_and_its_part_of_what_it_shares():
    rollup = (
        "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 46128 kB\nPss: 25775 kB\nPss_Anon: 20016 kB\nPss_File: 639 kB\n"
    )
    assert counted_mib(rollup + "Pss_Shmem: 5120 kB\n") == (20016 + 5120) / 1024


def test_a_process_holds_memory_and_files_and_is_no_porter():
    found = held(os.getpid())
    assert found.mib > 1
    assert found.files > 2
    assert (found.porter_mib, found.porter_rss_mib) == (0, 0)


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
