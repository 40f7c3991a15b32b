"""Who reaches the control port and vLLM, through the real supervisor, and what certificates that change do to streams."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from medley.core.identity import Role
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
from medley.wire.assignment import EnginePhase as Phase
from tests.engine.pod import KEY, assignment, pod, tls

HEADERS = {"Authorization": f"Bearer {KEY}"}
REFUSED = (aiohttp.ClientError, ConnectionError)


@pytest.fixture
def issuer():
    return Issuer.new()


async def reached(it, method, url, **context):
    """Return the status that a caller with these certificates gets, or None: not a word."""
    try:
        async with it.session.request(method, url, headers=HEADERS, **context) as answer:
            return answer.status
    except REFUSED:
        return None


async def test_routers_reach_vllm_and_the_state_and_the_operator_the_control_port(model, tmp_path, issuer):
    async with pod(tmp=tmp_path, issuer=issuer) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        assert len([line async for line in it.generate(5) if line.startswith("data: {")]) == 5
        engine = Keyring(tmp_path / "engine", print)
        reach = {
            role: (
                await reached(it, "GET", f"{it.control}/v1/state", **tls(ring)),
                await reached(it, "POST", f"{it.control}/v1/nothing", **tls(ring)),
                await reached(it, "GET", f"{it.engine}/health", **tls(ring)),
            )
            for role, ring in {Role.OPERATOR: it.operator, Role.ROUTER: it.router, Role.ENGINE: engine}.items()
        }
        assert reach == {
            Role.OPERATOR: (200, 404, None),
            Role.ROUTER: (200, 403, 200),
            Role.ENGINE: (403, 403, None),
        }


async def test_a_stranger_gets_nothing(model, tmp_path, issuer):
    async with pod(tmp=tmp_path, issuer=issuer) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        other = Issuer.new()
        begun = datetime.now(UTC) - timedelta(minutes=50)
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.load_verify_locations(tmp_path / "router" / "ca.crt")
        strangers = {
            "no certificate": {"ssl": nobody, "server_hostname": "engine.medley"},
            "another service's": tls(Keyring(other.folder(tmp_path / "other", Role.ROUTER, trusted=(issuer,)), print)),
            "one that is over": tls(
                Keyring(issuer.folder(tmp_path / "over", Role.ROUTER, issued=begun, life=timedelta(minutes=1)), print)
            ),
            "of the same authority for another service": tls(
                Keyring(issuer.folder(tmp_path / "shared", Role.ROUTER, service="models/other"), print)
            ),
        }
        got = {
            name: (
                await reached(it, "POST", f"{it.engine}/inference/v1/generate", **context),
                await reached(it, "GET", f"{it.control}/v1/state", **context),
            )
            for name, context in strangers.items()
        }
        assert got == dict.fromkeys(strangers, (None, None)) | {
            "of the same authority for another service": (None, 403)
        }
        plain = [await reached(it, "GET", url.replace("https", "http")) for url in (it.engine, it.control)]
        assert plain == [None, None]
        assert (await it.state()).running == 0


async def test_certificates_and_authorities_change_under_open_streams(model, tmp_path, issuer):
    async with pod(tmp=tmp_path, issuer=issuer) as it:
        await it.assign(assignment(model, "--fake-token-interval", "0.01"))
        await it.until(Phase.SERVING)
        successor = Issuer.new()
        streams = [it.generate(150) for _ in range(4)]
        counts = [sum([line.startswith("data: {")]) for line in [await anext(each) for each in streams]]

        async def rest(stream):
            return sum([line.startswith("data: {") async for line in stream])

        reading = [asyncio.create_task(rest(each)) for each in streams]
        for issuing, trusted in ((issuer, (successor,)), (successor, (issuer,)), (successor, ())):
            for role in Role:
                issuing.folder(tmp_path / role, role, trusted=trusted)
                assert len([line async for line in it.generate(2) if line.startswith("data: {")]) == 2
            assert (await it.state()).phase is Phase.SERVING
        assert [a + b for a, b in zip(counts, await asyncio.gather(*reading), strict=True)] == [150] * 4


async def test_a_client_that_leaves_is_gone_for_vllm_too_and_a_slow_one_loses_nothing(model, tmp_path, issuer):
    async with pod(tmp=tmp_path, issuer=issuer) as it:
        await it.assign(assignment(model, "--fake-token-interval", "0"))
        await it.until(Phase.SERVING)
        stream = it.generate(10**7)
        await anext(stream)
        await it.when(lambda report: report.running == 1)
        await stream.aclose()
        await it.when(lambda report: report.running == 0)
        slow = it.generate(20_000)
        await anext(slow)
        await asyncio.sleep(0.5)
        assert sum([line.startswith("data: {") async for line in slow]) == 19_999


async def test_without_vllm_connections_end(tmp_path, issuer):
    async with pod(tmp=tmp_path, issuer=issuer) as it:
        assert await reached(it, "GET", f"{it.engine}/health", **tls(it.router)) is None


async def test_vllms_metrics_are_read_on_the_open_port(model, tmp_path, issuer):
    async with pod(tmp=tmp_path, issuer=issuer) as it:
        assert await reached(it, "GET", f"{it.status}/engine/metrics") == 503
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        async with it.session.get(f"{it.status}/engine/metrics") as answer:
            assert "vllm:generation_tokens_total" in await answer.text()


async def test_vllm_that_died_is_reached_again_after_its_restart(model, tmp_path, issuer):
    async with pod(tmp=tmp_path, issuer=issuer) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        await it.fake("die")
        await it.when(lambda report: report.restarts == 1 and report.phase is Phase.SERVING)
        assert len([line async for line in it.generate(3) if line.startswith("data: {")]) == 3


async def test_a_folder_without_certificates_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="MEDLEY_TLS_DIR: reading /nowhere"):
        async with pod(tmp=tmp_path, environment={"MEDLEY_TLS_DIR": "/nowhere"}):
            pass
