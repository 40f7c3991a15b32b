"""Hostile bodies at the control port: refused with a message, and nothing breaks."""

import io
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medley.engine.control import control_app
from medley.engine.supervisor import Supervisor
from medley.wire.assignment import Assignment, DrainRequest, EngineReport
from medley.wire.assignment import EnginePhase as Phase
from tests.engine.pod import KEY, assignment

HEADERS = {"Authorization": f"Bearer {KEY}"}


class Recorder:
    """In the supervisor's place: what passed the border."""

    def __init__(self) -> None:
        self.got: list[Assignment | DrainRequest] = []

    def assign(self, wanted: Assignment) -> EngineReport:
        self.got.append(wanted)
        return self.report()

    def drain(self, request: DrainRequest) -> EngineReport:
        self.got.append(request)
        return self.report()

    def report(self) -> EngineReport:
        return EngineReport(phase=Phase.UNASSIGNED)


def test_the_recorder_has_the_supervisors_methods():
    for name in ("assign", "drain", "report"):
        assert list(getattr(Recorder, name).__annotations__) == list(getattr(Supervisor, name).__annotations__)


@pytest.fixture
async def port():
    recorder = Recorder()
    async with TestClient(TestServer(control_app(recorder, KEY))) as client:
        client.recorder = recorder
        yield client


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
mangled = st.builds(
    lambda name, value: json.dumps(assignment("/m").model_dump() | {name: value}).encode(),
    st.sampled_from([*Assignment.model_fields, "colour"]),
    json_values,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()) | mangled)
async def test_whatever_comes_is_parsed_or_refused(port, body):
    for method, path in (("PUT", "/v1/assignment"), ("POST", "/v1/drain")):
        before = len(port.recorder.got)
        answer = await port.request(method, path, data=body, headers=HEADERS)
        said = await answer.json()
        if answer.status == 200:
            assert len(port.recorder.got) == before + 1
        else:
            assert (answer.status, list(said), len(port.recorder.got)) == (422, ["error"], before)


async def test_a_refusal_names_the_field(port):
    body = json.dumps(assignment("/m").model_dump() | {"generation": 0, "colour": "red"})
    answer = await port.put("/v1/assignment", data=body, headers=HEADERS)
    said = (await answer.json())["error"]
    assert "generation: Input should be greater than or equal to 1" in said
    assert "colour: Extra inputs are not permitted" in said


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/assignment", io.BytesIO(b"x" * (2 << 20)), 413),
        ("PUT", "/v1/assignment", b"[" * 100_000, 422),
        ("POST", "/v1/assignment", b"{}", 405),
        ("GET", "/v1/nothing", None, 404),
        ("POST", "/v1/drain", b"", 200),
        ("POST", "/v1/drain", b'{"deadline": "0001-01-01T00:00:00"}', 200),
        ("POST", "/v1/drain", b'{"deadline": "soon"}', 422),
    ],
    ids=["too long", "too deep", "wrong method", "no such path", "empty drain", "long past", "no date"],
)
async def test_a_hostile_request(port, method, path, body, status):
    answer = await port.request(method, path, data=body, headers=HEADERS)
    assert answer.status == status
    assert list(await answer.json()) == (["error"] if status != 200 else list(EngineReport.model_fields))


async def test_without_the_key_not_even_a_path_is_told(port):
    for path in ("/v1/state", "/v1/nothing"):
        answer = await port.get(path)
        assert answer.status == 401
