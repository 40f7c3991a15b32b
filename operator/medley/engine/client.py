"""How the supervisor asks vLLM: health, counters, one token, version. Called by supervisor.py."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
from pydantic import ValidationError

from medley.core.errors import EngineError
from medley.core.names import url_host
from medley.engine.samples import Sample, sample_from
from medley.wire.ticket import EXPORT_PATH, STATE_PATH, ExportRequest, KvState

_ANSWER_S: Final = 5.0  # /health and /metrics; an engine that takes longer is not healthy
_LAST_LEASE_S: Final = 1.0  # vLLM ends a moment later
_TOKEN: Final = 0  # every vocabulary has it
_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError)


class EngineClient:
    """HTTP to vLLM on this pod: at a port of this machine, or at a socket file where one is given."""

    def __init__(self, host: str, port: int, key: str, socket_file: Path | None = None) -> None:
        connector = (
            aiohttp.TCPConnector(limit=4, force_close=True)  # vLLM comes and goes: no stale connections
            if socket_file is None
            else aiohttp.UnixConnector(str(socket_file), limit=4, force_close=True)
        )
        self._session = aiohttp.ClientSession(
            base_url=f"http://{url_host(host)}:{port}/",
            headers={"Authorization": f"Bearer {key}"},
            connector=connector,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._session.close()

    async def is_healthy(self) -> bool:
        """Say whether /health answers 200."""
        try:
            async with self._session.get("health", timeout=aiohttp.ClientTimeout(_ANSWER_S)) as answer:
                return answer.status == 200  # noqa: PLR2004 - HTTP
        except _ERRORS:
            return False  # the question was whether it answers

    async def sample(self) -> Sample | None:
        """Return vLLM's counters, or None if it has none yet or does not answer."""
        text = await self.metrics()  # the age of the last sample says that none came
        return None if text is None else sample_from(text, time.monotonic())

    async def metrics(self) -> str | None:
        """Return vLLM's metrics as Prometheus reads them, or None if it does not answer."""
        try:
            async with self._session.get("metrics", timeout=aiohttp.ClientTimeout(_ANSWER_S)) as answer:
                return await answer.text(errors="replace") if answer.status == 200 else ""  # noqa: PLR2004 - HTTP
        except _ERRORS:
            return None

    async def exports(self) -> int | None:
        """Return how many KV caches are held for other engines; 0 without the plugin, None if vLLM does not answer."""
        try:
            state = await self._state()
        except EngineError:
            return None  # unknown is not zero
        return 0 if state is None else state.exports

    async def end_requests(self) -> None:
        """Have vLLM end all requests, each after a token that went out; without the plugin, EngineError."""
        body = ExportRequest(requests=None, keep_running=False, lease_s=_LAST_LEASE_S).model_dump(mode="json")
        try:
            async with self._session.post(
                EXPORT_PATH[1:], json=body, timeout=aiohttp.ClientTimeout(_ANSWER_S)
            ) as answer:
                if answer.status != 200:  # noqa: PLR2004 - HTTP
                    raise EngineError(f"ending vLLM's requests: status {answer.status}")
        except _ERRORS as error:
            raise EngineError(f"ending vLLM's requests: {str(error) or type(error).__name__}") from error

    async def version(self) -> str:
        """Return vLLM's version; empty if it does not say."""
        try:
            async with self._session.get("version", timeout=aiohttp.ClientTimeout(_ANSWER_S)) as answer:
                said = await answer.json() if answer.status == 200 else {}  # noqa: PLR2004 - HTTP
        except (*_ERRORS, ValueError):
            return ""
        return str(said.get("version", "")) if isinstance(said, dict) else ""

    async def kv_state(self) -> KvState | None:
        """Return whether vLLM carries KV, as the plugin says; None if it does not say."""
        try:
            return await self._state()
        except EngineError:
            return None  # what is not said is not claimed

    async def make_token(self, limit_s: float) -> None:
        """Have vLLM make one token the way routers ask for them; EngineError says why it did not."""
        body = {
            "token_ids": [_TOKEN],
            "sampling_params": {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True, "detokenize": False},
            "stream": False,
        }
        try:
            async with self._session.post(
                "inference/v1/generate", json=body, timeout=aiohttp.ClientTimeout(limit_s)
            ) as answer:
                text = await answer.text(errors="replace")
                if answer.status != 200:  # noqa: PLR2004 - HTTP
                    raise EngineError(f"asking vLLM for a token: {answer.status} {text[:300]}")
        except TimeoutError as error:
            raise EngineError(f"asking vLLM for a token: none within {limit_s:g} s") from error
        except _ERRORS as error:
            raise EngineError(f"asking vLLM for a token: {error}") from error

    async def _state(self) -> KvState | None:
        """Return what the plugin says of KV, None without it; EngineError if vLLM does not answer, or oddly."""
        try:
            async with self._session.get(STATE_PATH[1:], timeout=aiohttp.ClientTimeout(_ANSWER_S)) as answer:
                body = await answer.read()
                return KvState.model_validate_json(body) if answer.status == 200 else None  # noqa: PLR2004 - HTTP
        except (*_ERRORS, ValidationError) as error:
            raise EngineError(f"asking vLLM what KV it holds: {str(error) or type(error).__name__}") from error
