"""Real vLLM engines with the plugin, as processes: asked, exported from, killed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from medley.demo.processes import free_port
from medley.demo.vllm_venv import engine_environment
from medley.engine import command
from medley.engine.entry_point import write_entry_point
from medley.wire.resume import RESUME_OUTPUT_TOKEN_IDS
from medley.wire.ticket import EXPORT_PATH, RELEASE_PATH, RENEW_PATH, STATE_PATH

OPERATOR = Path(__file__).parents[3] / "operator"
KEY = "k3y"
START_S = 1500
PATIENCE = {"MEDLEY_KV_STALL": "60"}  # the machine is shared
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")


class Engine:
    def __init__(self, folder: Path, name: str, python: Path, model: Path, *arguments: str, **variables: str) -> None:
        self.name, self.port = name, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        plugin = folder / f"{name}-plugin"
        plugin.mkdir()
        write_entry_point(plugin)
        inherited = (
            engine_environment() | {"PYTHONPATH": str(OPERATOR), "MEDLEY_MIGRATION": "Live"} | PATIENCE | variables
        )
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as output:
            # A group, not a session: see medley.demo.processes.
            self.popen = subprocess.Popen(
                [
                    str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
                    "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32",
                    "--max-model-len", "4096", "--block-size", "32", "--max-num-seqs", "32",
                    "--max-num-batched-tokens", "1024", "--enable-scale-out", "--middleware", command.GUARD,
                    "--enforce-eager", *arguments,
                ],
                env=command.environment(inherited, KEY, plugin) | {"VLLM_LOGGING_LEVEL": "INFO"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip
        self.session: aiohttp.ClientSession | None = None

    async def ready(self) -> None:
        self.session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {KEY}"}, timeout=aiohttp.ClientTimeout(total=600), trust_env=False
        )
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            assert self.popen.poll() is None, self.tail()
            try:
                async with self.session.get(self.url + "/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
        raise AssertionError(self.tail())

    def tail(self, count: int = 6000) -> str:
        return self.log.read_bytes()[-count:].decode(errors="replace")

    def kill(self) -> None:
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()
        if self.popen.poll() is None:
            self.kill()

    async def post(self, path: str, body, status: int = 200):
        data = io.BytesIO(json.dumps(body).encode())
        headers = {"Content-Type": "application/json"}
        async with self.session.post(self.url + path, data=data, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return json.loads(text)

    async def export(self, names=None, *, keep_running=False, lease_s=600.0):
        return await self.post(EXPORT_PATH, {"requests": names, "keep_running": keep_running, "lease_s": lease_s})

    async def release(self, *exports):
        return await self.post(RELEASE_PATH, {"exports": exports})

    async def renew(self, *exports, lease_s=30.0):
        return await self.post(RENEW_PATH, {"exports": exports, "lease_s": lease_s})

    async def state(self):
        async with self.session.get(self.url + STATE_PATH) as answer:
            assert answer.status == 200
            return await answer.json()

    async def prompt_tokens(self) -> dict[str, int]:
        """Prompt tokens by where they came from, since the engine started."""
        return {
            source: await self._counted("vllm:prompt_tokens_by_source_total", f'source="{source}"')
            for source in SOURCES
        }

    async def _counted(self, metric: str, label: str = "") -> int:
        async with self.session.get(self.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found = [line for line in lines if line.startswith(f"{metric}{{") and label in line]
        return int(sum(float(line.rpartition(" ")[2]) for line in found))

    def stream(self, name: str, prompt, committed=(), ticket=None, *, salt=None, **sampling) -> Stream:
        return Stream(self, name, prompt, committed=committed, ticket=ticket, salt=salt, sampling=sampling)

    async def tokens(self, name: str, prompt, committed=(), ticket=None, *, salt=None, **sampling) -> list[int]:
        one = self.stream(name, prompt, committed, ticket, salt=salt, **sampling)
        return await one.rest()


class Stream:
    """One request and the tokens it gave; times are of the event loop's clock."""

    def __init__(self, engine: Engine, name: str, prompt, *, committed, ticket, salt, sampling) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.logprobs: list[float] = []
        self.finish_reason = None
        extra = {"extra_args": {RESUME_OUTPUT_TOKEN_IDS: list(committed)}} if committed else {}
        self._body = {
            "request_id": name, "token_ids": list(prompt), "stream": True,
            "sampling_params": {"temperature": 0.0, "ignore_eos": True, "detokenize": False} | sampling | extra,
        } | ({} if ticket is None else {"kv_transfer_params": {"medley": ticket}}) | ({} if salt is None else {"cache_salt": salt})  # fmt: skip
        self._engine = engine
        self._grown = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        url = self._engine.url + "/inference/v1/generate"
        async with self._engine.session.post(url, json=self._body) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                (choice,) = json.loads(line[6:]).get("choices") or [{}]
                now = asyncio.get_running_loop().time()
                self.tokens += choice.get("token_ids") or []
                self.times += [now] * len(choice.get("token_ids") or [])
                self.logprobs += [each["logprob"] for each in (choice.get("logprobs") or {}).get("content") or []]
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                self._grown.set()

    async def at_least(self, count: int) -> None:
        while len(self.tokens) < count:
            assert not self.task.done(), (self.finish_reason, self.tokens, self.task)
            self._grown.clear()
            grown = asyncio.ensure_future(self._grown.wait())
            await asyncio.wait([grown, self.task], return_when=asyncio.FIRST_COMPLETED)
            grown.cancel()

    async def rest(self) -> list[int]:
        await self.task
        return self.tokens


@asynccontextmanager
async def engines(folder: Path, python: Path, model: Path, variables=None, **arguments: tuple[str, ...]):
    """Start engines by name, each with arguments of its own; all end with the block."""
    started = [Engine(folder, name, python, model, *each, **(variables or {})) for name, each in arguments.items()]
    try:
        for each in started:
            await each.ready()
        yield started
    finally:
        for each in started:
            await each.close()


def since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before.get(name, 0.0) for name in after}


async def unpinned(engine: Engine) -> None:
    """Wait until an engine has all its blocks back."""
    for _ in range(600):
        state = await engine.state()
        if not state["exports"] and state["free_blocks"] == state["total_blocks"]:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(state)
