"""Bytes of strangers at the ports of the KV transport and at `/medley/v1/*`: refused, and the next caller is served."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from medley.demo.vllm_venv import ensure_venv
from medley.engine.kv.messages import LENGTH, PinQuery, framed, parse_answer
from medley.engine.kv.server import Holder, pin_answers

OPERATOR = Path(__file__).parents[3] / "operator"
STALL_S = 0.3
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def holder():
    one = Holder("127.0.0.1", pin_answers(lambda export: export == "e"), None, stall_s=STALL_S)
    yield one
    one.close()


def asked(port: int, frame: bytes) -> bytes:
    """Return all that comes back for a frame."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(frame)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while piece := sock.recv(65536):
                answer += piece
        return answer


frames = (
    st.binary(max_size=64)
    | json_values.map(lambda value: (raw := json.dumps(value).encode()) and LENGTH.pack(len(raw)) + raw)
    | st.builds(
        lambda name, value: (
            (raw := json.dumps(PinQuery(export_id="e").model_dump() | {name: value}).encode())
            and LENGTH.pack(len(raw)) + raw
        ),
        st.sampled_from(["kind", "version", "export_id", "x"]),
        json_values,
    )
    | st.integers(0, 2**32 - 1).map(lambda size: LENGTH.pack(size) + b"{}")
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(frames)
def test_no_bytes_end_a_holder(holder, frame):
    answer = asked(holder.port, frame)
    if answer:
        assert parse_answer(answer[LENGTH.size :]).ok in {True, False}
    good = asked(holder.port, framed(PinQuery(export_id="e")))
    assert parse_answer(good[LENGTH.size :]).ok


# The endpoints live in vLLM's API server; its Python has FastAPI, ours has not.
SERVER = """
import asyncio, json, sys
from fastapi import FastAPI
from starlette.testclient import TestClient
from medley.core.service import MigrationMode
from medley.engine.kv import activation, endpoints
from medley.wire.ticket import Exported, Held, KvState

class Core:
    async def call_utility_async(self, name, *arguments):
        if name == "medley_state":
            return KvState(mode=MigrationMode.AUTO, capable=True).model_dump_json()
        return (Exported(tickets=(), unknown=()) if name == "medley_export" else Held(exports=(), unknown=())).model_dump_json()

class Engine:
    engine_core = Core()

activation.STANDING.mode = MigrationMode.AUTO
plugin = endpoints.endpoints()
app = FastAPI()
plugin.attach_router(app)
asyncio.run(plugin.init_state(Engine(), None, None))
client = TestClient(app, raise_server_exceptions=True)
for line in sys.stdin:
    path, body = json.loads(line)
    answer = client.post(path, content=bytes.fromhex(body))
    print(json.dumps([answer.status_code, answer.json()]), flush=True)
"""
PATHS = ("/medley/v1/export", "/medley/v1/renew", "/medley/v1/release")


def bodies(count: int) -> list[bytes]:
    """Return examples as Hypothesis draws them, all of one kind together."""
    made: list[bytes] = []
    fields = st.sampled_from(["requests", "keep_running", "lease_s", "exports", "x"])
    one = (
        st.dictionaries(fields, json_values, max_size=3).map(lambda value: json.dumps(value).encode())
        | json_values.map(lambda value: json.dumps(value).encode())
        | st.binary(max_size=40)
    )

    def keep(body: bytes) -> bool:
        made.append(body)
        return False

    with suppress(NoSuchExample):  # all were kept
        find(one, keep, settings=settings(max_examples=count, database=None))
    return made


@pytest.mark.vllm
def test_no_body_ends_the_endpoints():
    sent = [
        *((path, body) for body in bodies(150) for path in PATHS),
        *((path, body) for path in PATHS for body in (b"[" * 100_000, b"x" * (5 << 20), b"")),
        (PATHS[0], json.dumps({"requests": ["a"], "keep_running": True, "lease_s": 1}).encode()),
    ]
    server = subprocess.run(
        [str(ensure_venv(lambda line: None)), "-c", SERVER],
        input="".join(json.dumps([path, body.hex()]) + "\n" for path, body in sent).encode(),
        env=os.environ | {"PYTHONPATH": str(OPERATOR)}, capture_output=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert server.returncode == 0, server.stderr.decode()[-3000:]
    answers = [json.loads(line) for line in server.stdout.splitlines()]
    assert len(answers) == len(sent) > 300
    assert {status for status, _ in answers} <= {200, 413, 422}
    assert all(isinstance(said["error"], str) for status, said in answers if status != 200)
    assert answers[-1] == [200, {"tickets": [], "unknown": []}]
