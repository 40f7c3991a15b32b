"""An engine pod as a process: the real supervisor, with vLLM or its stand-in inside."""

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from medley.core.identity import Role, dns_name
from medley.testing.certificates import Issuer
from medley.tls.keyring import Keyring
from medley.wire.assignment import Assignment, EnginePhase, EngineReport

KEY = "k3y-of-the-service"
OPERATOR = Path(__file__).parents[2] / "operator"
FAKE = Path(__file__).parent / "fake"


def assignment(model: str, *engine_args: str, **changes) -> Assignment:
    return Assignment(
        **{"service": "chat", "replica": "chat-l4-s-a-0", "generation": 1, "model": model, "served_model_name": "m"}
        | {"engine_args": engine_args}
        | changes
    )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def tls(ring: Keyring | None) -> dict:
    """Return what aiohttp's requests need to speak with an engine."""
    return {} if ring is None else {"ssl": ring.client, "server_hostname": dns_name(Role.ENGINE)}


class Pod:
    """`operator` and `router`: whose certificates `call` and `generate` show; None: plain HTTP."""

    def __init__(
        self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession, ports: list[int],
        operator: Keyring | None = None, router: Keyring | None = None,
    ) -> None:  # fmt: skip
        self.process = process
        self.session = session
        self.operator, self.router = operator, router
        scheme = "http" if operator is None else "https"
        self.engine, self.control = (f"{scheme}://127.0.0.1:{port}" for port in ports[:2])
        self.status = f"http://127.0.0.1:{ports[2]}"
        self.lines: list[str] = []
        self.reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode().rstrip("\n"))

    async def assign(self, wanted: Assignment) -> EngineReport:
        status, report = await self.call("PUT", "/v1/assignment", wanted.model_dump_json())
        assert status == 200, report
        return EngineReport.model_validate(report)

    async def drain(self, body: str = "{}") -> EngineReport:
        status, report = await self.call("POST", "/v1/drain", body)
        assert status == 200, report
        return EngineReport.model_validate(report)

    async def call(self, method: str, path: str, body: str | bytes | None = None, key: str | None = KEY):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with self.session.request(
            method, self.control + path, data=body, headers=headers, **tls(self.operator)
        ) as answer:
            return answer.status, await answer.json()

    async def state(self) -> EngineReport:
        return EngineReport.model_validate((await self.call("GET", "/v1/state"))[1])

    async def ready(self) -> int:
        async with self.session.get(self.status + "/readyz") as answer:
            return answer.status

    async def until(self, phase: EnginePhase, limit_s: float = 20.0) -> EngineReport:
        return await self.when(lambda report: report.phase is phase, limit_s)

    async def when(self, true_of, limit_s: float = 20.0) -> EngineReport:
        report = None
        try:
            async with asyncio.timeout(limit_s):
                while not true_of(report := await self.state()):  # noqa: ASYNC110 - it is in another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"still {report!r}\n" + "\n".join(self.lines[-60:])) from None
        return report

    async def says(self, text: str) -> None:
        async with asyncio.timeout(60):
            while not any(text in line for line in self.lines):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.02)

    async def generate(self, tokens: int, key: str | None = KEY, **body):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        wanted = {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": tokens}, "stream": True} | body
        async with self.session.post(
            f"{self.engine}/inference/v1/generate", json=wanted, headers=headers, **tls(self.router)
        ) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                yield line.decode().strip()

    async def fake(self, what: str) -> None:
        try:
            async with self.session.post(f"{self.engine}/fake/{what}", **tls(self.router)) as answer:
                assert answer.status == 200
        except aiohttp.ClientError:
            assert what == "die"

    async def end(self, limit_s: float = 20.0) -> int:
        async with asyncio.timeout(limit_s):
            code = await self.process.wait()
            await self.reading
        return code


@asynccontextmanager
async def pod(
    *,
    tmp,
    python: str = sys.executable,
    fake: bool = True,
    environment: dict[str, str] | None = None,
    issuer: Issuer | None = None,
):
    """Run one. `issuer`: of the service's certificates; folders `engine`, `router` and `operator` appear in `tmp`."""
    rings = {}
    if issuer is not None:
        rings = {role: issuer.folder(Path(tmp) / role, role) for role in Role}
        environment = {"MEDLEY_TLS_DIR": str(rings[Role.ENGINE])} | (environment or {})
        rings = {role: Keyring(folder, print) for role, folder in rings.items()}
    ports = free_ports(3)
    key_file = Path(tmp) / "key"
    key_file.write_text(KEY + "\n")
    limits = {"MEDLEY_STALL_LIMIT": "3", "MEDLEY_RESTART_LIMIT": "1", "MEDLEY_STOP_LIMIT": "1"} if fake else {}
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(OPERATOR), *([str(FAKE)] if fake else [])]),
        "MEDLEY_KEY_FILE": str(key_file),
        "MEDLEY_BIND_HOST": "127.0.0.1",
        "MEDLEY_ENGINE_PORT": str(ports[0]),
        "MEDLEY_CONTROL_PORT": str(ports[1]),
        "MEDLEY_STATUS_PORT": str(ports[2]),
        "MEDLEY_GRACE": "8",
        "TMPDIR": str(tmp),
        **limits,
        **(environment or {}),
    }
    process = await asyncio.create_subprocess_exec(
        python, "-m", "medley.engine", env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        process_group=0,
    )  # fmt: skip
    async with aiohttp.ClientSession() as session:
        one = Pod(process, session, ports, rings.get(Role.OPERATOR), rings.get(Role.ROUTER))
        try:
            async with asyncio.timeout(60):
                while not any("control on" in line for line in one.lines):
                    if process.returncode is not None:
                        await one.reading
                        raise AssertionError(one.lines)
                    await asyncio.sleep(0.02)
            yield one
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(15):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()
            one.reading.cancel()
