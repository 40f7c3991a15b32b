"""An engine without a model: each token is a checksum of all tokens before it, so any lost or doubled token shows.

Speaks vLLM 0.32's generate and render protocol as far as the router uses it, and breaks on request.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from medley.wire.assignment import Capability, EnginePhase, EngineReport

MODEL = "stub"
EOS = 1
_SPECIAL = ("<s>", "</s>", "<pad>")
_WORDS = (" the", " quick", " END", "END", " fox", "é", " of", "ing", "\n", "😀", " a", ".", ",", " 12", " lazy dog")


def tokenizer() -> Tokenizer:
    """Byte-level tokens for all bytes, then some words; ids 0 to 2 are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(part for part, _ in byte_level.pre_tokenize_str(word)) for word in _WORDS]
    names = [*_SPECIAL, *alphabet, *(word for word in words if word not in alphabet)]
    made = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = byte_level
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(_SPECIAL))
    return made


TOKENIZER = tokenizer()
VOCABULARY = TOKENIZER.get_vocab_size()


def reference(prompt: Sequence[int], count: int, *, seed: int = 0, outputs_count: bool = False) -> list[int]:
    """Return what an uninterrupted run makes."""
    return list(continued(prompt, (), count, seed, outputs_count=outputs_count))


def continued(
    prompt: Sequence[int], done: Sequence[int], count: int, seed: int, *, outputs_count: bool
) -> Iterable[int]:
    # With penalties and grammars it matters where the prompt ends.
    state = zlib.crc32(f"{seed}:{len(prompt) if outputs_count else ''}".encode())
    for token in (*prompt, *done):
        state = zlib.crc32(token.to_bytes(4, "little"), state)
    for _ in range(count):
        token = 3 + state % (VOCABULARY - 3)
        yield token
        state = zlib.crc32(token.to_bytes(4, "little"), state)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call, after `after` tokens."""

    kind: str  # cut, half-event, end, silence, error-event, abort, status-500, status-400, no-answer, garbage
    after: int = 0


@dataclass
class StubEngine:
    """One engine. `faults` apply to the next calls in order; then all is well."""

    faults: deque[Fault] = field(default_factory=deque)
    together: int = 1  # tokens per event
    pause: Callable[[int], float] = lambda n: 0.0  # seconds before the n-th token
    resumes_output: bool = False
    key: str | None = None
    max_model_len: int = 4096
    defaults: dict[str, Any] = field(default_factory=dict)  # the model's own sampling parameters
    calls: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    vanished: int = 0  # calls that ended because the router left

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_post("/v1/chat/completions/render", self._render_chat)
        app.router.add_post("/v1/completions/render", self._render_completion)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/tokenizer.json", self._tokenizer)
        app.router.add_get("/v1/state", self._state)
        return app

    @asynccontextmanager
    async def running(self, host: str = "127.0.0.1", ports: tuple[int, ...] = (0,)) -> AsyncIterator[str]:
        """Serve on all ports; as a pod does, with its supervisor's answers on the same ports."""
        runner = web.AppRunner(self.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        for port in ports:
            await web.TCPSite(runner, host, port).start()
        try:
            yield f"http://{host}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    def _check_key(self, request: web.Request) -> None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized(text='{"error":"Unauthorized"}', content_type="application/json")

    async def _models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return web.json_response({"data": [{"id": MODEL, "max_model_len": self.max_model_len}]})

    async def _tokenizer(self, _: web.Request) -> web.Response:
        return web.Response(text=TOKENIZER.to_str())

    async def _state(self, request: web.Request) -> web.Response:
        self._check_key(request)
        capabilities = (Capability.RESUME_EXACT.value,) if self.resumes_output else ()
        report = EngineReport(phase=EnginePhase.SERVING, capabilities=capabilities)
        return web.Response(text=report.model_dump_json(), content_type="application/json")

    async def _render_chat(self, request: web.Request) -> web.Response:
        self._check_key(request)
        body = await request.json()
        text = "\n".join(f"{m['role']}: {m['content']}" for m in body["messages"])
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        return self._rendered(body, [TOKENIZER.encode(text).ids], limit, many=False)

    async def _render_completion(self, request: web.Request) -> web.Response:
        self._check_key(request)
        body = await request.json()
        prompt = body["prompt"]
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            prompt = [prompt]
        prompts = [TOKENIZER.encode(each).ids if isinstance(each, str) else each for each in prompt]
        return self._rendered(body, prompts, body.get("max_tokens", 16), many=True)

    def _rendered(
        self, body: dict[str, Any], prompts: list[list[int]], limit: int | None, *, many: bool
    ) -> web.Response:
        if limit is not None and limit > self.max_model_len:
            message = f"max_tokens={limit} cannot be greater than max_model_len={self.max_model_len}."
            error = {"message": message, "type": "BadRequestError", "param": "max_tokens", "code": 400}
            return web.json_response({"error": error}, status=400)
        names = (
            "temperature", "top_p", "min_tokens", "presence_penalty", "frequency_penalty", "structured_outputs",
            "ignore_eos", "logit_bias",
        )  # fmt: skip
        sampling = self.defaults | {name: body[name] for name in names if name in body}
        top = body.get("top_logprobs", 0) if body.get("logprobs") is True else body.get("logprobs")
        if top is not None and top is not False:
            sampling["logprobs"] = top
        answers = []
        for ids in prompts:
            most = limit if limit is not None else self.max_model_len - len(ids)
            # As vLLM does, what equals its default is left out.
            answers.append(
                {
                    "request_id": "ignored",
                    "token_ids": ids,
                    "sampling_params": sampling | ({} if most == 16 else {"max_tokens": most}),
                    "features": None,
                    "stream": False,
                    "priority": 0,
                }
            )
        return web.json_response(answers if many else answers[0])

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self._check_key(request)
        body = await request.json()
        self.calls.append(body)
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and fault.kind.startswith("status-"):
            status = int(fault.kind.removeprefix("status-"))
            return web.json_response({"error": {"message": "as told", "param": None, "code": status}}, status=status)
        if fault is not None and fault.kind == "no-answer":
            await asyncio.sleep(3600)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.open += 1
        try:
            await self._stream(request, response, body, fault)
        except (asyncio.CancelledError, ConnectionResetError):
            self.vanished += 1
            raise
        finally:
            self.open -= 1
        return response

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, body: dict[str, Any], fault: Fault | None
    ) -> None:
        sampling = body["sampling_params"]
        done = (sampling.get("extra_args") or {}).get("resume_output_token_ids", []) if self.resumes_output else []
        outputs_count = bool(sampling.get("presence_penalty") or sampling.get("structured_outputs"))
        seed = 0 if sampling.get("temperature") == 0 else sampling["seed"]
        count = sampling.get("max_tokens", 16) - len(done)
        tokens = list(continued(body["token_ids"], done, count, seed, outputs_count=outputs_count))
        made = 0
        while made < len(tokens):
            step = tokens[made : made + self.together]
            if fault is not None and made + len(step) > fault.after:
                step = step[: fault.after - made]
                if step:
                    await response.write(self._event(step, None, sampling))
                await self._break(request, response, fault, tokens[made + len(step)])
                return
            pause = self.pause(made)
            if pause:
                await asyncio.sleep(pause)
            made += len(step)
            await response.write(self._event(step, "length" if made == len(tokens) else None, sampling))
        await response.write(b"data: [DONE]\n\n")

    async def _break(self, request: web.Request, response: web.StreamResponse, fault: Fault, token: int) -> None:
        match fault.kind:
            case "cut":
                await asyncio.sleep(0)
                request.transport.abort()  # type: ignore[union-attr]
            case "half-event":
                event = self._event([token], None, {})
                await response.write(event[: len(event) // 2])
                request.transport.close()  # type: ignore[union-attr]
            case "end":
                await response.write(b"data: [DONE]\n\n")
            case "silence":
                await asyncio.sleep(3600)
            case "error-event":
                await response.write(b'data: {"error": {"message": "as told", "code": 500}}\n\ndata: [DONE]\n\n')
            case "abort":
                await response.write(self._event([], "abort", {}))
            case "garbage":
                await response.write(b"data: {]\n\n")
            case other:
                raise AssertionError(other)

    @staticmethod
    def _event(tokens: list[int], reason: str | None, sampling: dict[str, Any]) -> bytes:
        logprobs = None
        if sampling.get("logprobs") is not None:
            logprobs = {"content": [_logprob(token, sampling["logprobs"]) for token in tokens]}
        choice = {"index": 0, "finish_reason": reason, "stop_reason": None, "token_ids": tokens, "logprobs": logprobs}
        event = {"request_id": "x", "usage": None, "output_mode": "tokens", "choices": [choice]}
        return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _logprob(token: int, top: int) -> dict[str, Any]:
    tops = [{"token_id": (token + n) % VOCABULARY, "logprob": -0.5 - n, "rank": n + 1} for n in range(max(top, 1))]
    return {"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": tops}
