"""An engine without a model: each token is a checksum of all tokens before it, so any lost or doubled token shows.

Speaks vLLM 0.32's generate and render protocol as far as the router uses it, medley's endpoints for the KV cache beside
it, and breaks on request. A stub "computes" what neither its prefix cache nor a ticket covers, and writes down how much.
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

from medley.core.service import MigrationMode
from medley.wire.assignment import Capability, EnginePhase, EngineReport
from medley.wire.ticket import (
    EXPORT_PATH,
    RELEASE_PATH,
    RENEW_PATH,
    STATE_PATH,
    Exported,
    ExportRequest,
    Held,
    KvState,
    Pins,
    ReleaseRequest,
    RenewRequest,
    Source,
    Ticket,
    history_digest,
)

MODEL = "stub"
EOS = 1
BLOCK = 16
BYTES_PER_TOKEN = 1024
MODEL_DIGEST = "0" * 64
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
class Running:
    """One request that runs."""

    tokens: list[int]  # prompt and output so far
    ends: asyncio.Event = field(default_factory=asyncio.Event)  # exported for good


# What stubs of this process have pinned: export id -> the tokens, and the engine.
PINNED: dict[str, tuple[list[int], StubEngine]] = {}


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
    numerics: str | None = None  # None: without the plugin; else equal ones exchange KV
    # export: status-500, hang, no-end (the ticket comes, the stream goes on), end-only (the reverse), empty, unknown
    export_faults: deque[str] = field(default_factory=deque)
    prefill_seconds: float = 0.0  # per token that is computed
    free_blocks: int = 1000
    cached: list[list[int]] = field(default_factory=list)
    computed: dict[str, int] = field(default_factory=dict)  # tokens of prompts, by request id
    pulled: dict[str, int] = field(default_factory=dict)
    exported: list[str] = field(default_factory=list)  # request ids, in order
    running_requests: dict[str, Running] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    reasons: bool = False  # it has a reasoning parser
    derender_faults: deque[int] = field(default_factory=deque)  # statuses of the next derender calls
    derendered: int = 0
    rendered: int = 0
    gone: bool = False  # its machine was taken: nothing can be pulled from it
    calls: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    vanished: int = 0  # calls that ended because the router left

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_post("/v1/chat/completions/render", self._render_chat)
        app.router.add_post("/v1/completions/render", self._render_completion)
        app.router.add_post("/v1/chat/completions/derender", self._derender)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/tokenizer.json", self._tokenizer)
        app.router.add_get("/v1/state", self._state)
        if self.numerics is not None:
            app.router.add_get(STATE_PATH, self._kv)
            app.router.add_post(EXPORT_PATH, self._export)
            app.router.add_post(RENEW_PATH, self._renew)
            app.router.add_post(RELEASE_PATH, self._release)
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
        adapters = [{"id": name, "max_model_len": None, "parent": MODEL} for name in self.adapters]
        return web.json_response({"data": [{"id": MODEL, "max_model_len": self.max_model_len}, *adapters]})

    async def _tokenizer(self, _: web.Request) -> web.Response:
        return web.Response(text=TOKENIZER.to_str())

    async def _state(self, request: web.Request) -> web.Response:
        self._check_key(request)
        capabilities = (Capability.RESUME_EXACT.value,) if self.resumes_output else ()
        report = EngineReport(phase=EnginePhase.SERVING, capabilities=capabilities)
        return web.Response(text=report.model_dump_json(), content_type="application/json")

    @property
    def pinned(self) -> list[str]:
        """The exports that nobody released yet."""
        return [export_id for export_id, (_, engine) in PINNED.items() if engine is self]

    async def _kv(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return _answer(
            KvState(
                mode=MigrationMode.AUTO,
                capable=True,
                takes_outputs=self.resumes_output,
                numerics=str(self.numerics),
                block_size=BLOCK,
                bytes_per_token=BYTES_PER_TOKEN,
                total_blocks=1000,
                free_blocks=self.free_blocks,
                exports=len(self.pinned),
            )
        )

    async def _export(self, request: web.Request) -> web.Response:
        self._check_key(request)
        asked = ExportRequest.model_validate_json(await request.read())
        fault = self.export_faults.popleft() if self.export_faults else None
        if fault == "status-500":
            return web.json_response({"error": "as told"}, status=500)
        if fault == "hang":
            await asyncio.sleep(3600)
        names = list(self.running_requests) if asked.requests is None else asked.requests
        if fault == "unknown":
            return _answer(Exported(tickets=(), unknown=tuple(names)))
        tickets = []
        for name in names:
            running = self.running_requests.get(name)
            if running is None:
                continue
            self.exported.append(name)
            tickets.append(self._ticket(name, running.tokens[:-1] if fault != "empty" else [], asked.lease_s))
            if not asked.keep_running and fault != "no-end":
                running.ends.set()
        if fault == "end-only":
            await asyncio.sleep(3600)
        known = {ticket.request_id for ticket in tickets}
        return _answer(Exported(tickets=tuple(tickets), unknown=tuple(name for name in names if name not in known)))

    def _ticket(self, name: str, tokens: list[int], lease_s: float) -> Ticket:
        export_id = f"{id(self):x}-{len(self.exported)}"
        PINNED[export_id] = tokens, self
        source = Source(host="127.0.0.1", port=1, pp=0, tp=0, layers=("0",), head_lo=0, head_n=1, grant=MODEL_DIGEST)
        return Ticket(
            export_id=export_id,
            request_id=name,
            valid_tokens=len(tokens),
            tokens=history_digest(tokens),
            block_size=BLOCK,
            blocks=tuple(range(-(-len(tokens) // BLOCK))),
            dtype="float32",
            content=BYTES_PER_TOKEN // 4,
            numerics=MODEL_DIGEST,
            model=MODEL_DIGEST,
            lease_s=lease_s,
            pins=Pins(host="127.0.0.1", port=1),
            sources=(source,),
        )

    async def _renew(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return self._held(RenewRequest.model_validate_json(await request.read()).exports)

    async def _release(self, request: web.Request) -> web.Response:
        self._check_key(request)
        exports = ReleaseRequest.model_validate_json(await request.read()).exports
        answer = self._held(exports)
        for export_id in exports:
            PINNED.pop(export_id, None)
        return answer

    @staticmethod
    def _held(exports: Sequence[str]) -> web.Response:
        there = tuple(each for each in exports if each in PINNED)
        return _answer(Held(exports=there, unknown=tuple(each for each in exports if each not in PINNED)))

    async def _prefill(self, name: str, tokens: list[int], ticket: dict[str, Any] | None) -> None:
        """Compute a prompt but for what the prefix cache has and what the ticket, if it holds, brings."""
        held = max((_common(tokens, each) for each in self.cached), default=0) // BLOCK * BLOCK
        if ticket is not None:
            asked = Ticket.model_validate(ticket)
            pinned = PINNED.get(asked.export_id)
            fits = history_digest(tokens[: asked.valid_tokens]) == asked.tokens
            if pinned is not None and not pinned[1].gone and fits and len(tokens) > asked.valid_tokens > held:
                self.pulled[name] = asked.valid_tokens - held
                held = asked.valid_tokens
        self.computed[name] = len(tokens) - min(held, len(tokens) - 1)
        self.cached.append(tokens)
        if self.prefill_seconds:
            await asyncio.sleep(self.prefill_seconds * self.computed[name])

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
        self.rendered += 1
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
            if len(ids) >= self.max_model_len:
                message = f"The prompt has {len(ids)} tokens, the model takes fewer than {self.max_model_len}."
                error = {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}
                return web.json_response({"error": error}, status=400)
            most = limit if limit is not None else self.max_model_len - len(ids)
            # As vLLM does, what equals its default is left out.
            answers.append(
                {
                    "request_id": "ignored",
                    "token_ids": ids,
                    "sampling_params": sampling | ({} if most == 16 else {"max_tokens": most}),
                    "features": None,
                    "model": body["model"],
                    **({"reasoning_parser_kwargs": {"chat_template_kwargs": {}}} if self.reasons else {}),
                    "stream": False,
                    "priority": 0,
                }
            )
        return web.json_response(answers if many else answers[0])

    async def _derender(self, request: web.Request) -> web.Response:
        """Read five tokens as reasoning, five as content, the rest as a tool call's arguments; each as its number."""
        self._check_key(request)
        if self.derender_faults:
            return web.json_response({"error": {"message": "as told"}}, status=self.derender_faults.popleft())
        self.derendered += 1
        body = await request.json()
        if not body["stream"]:
            choice = body["generate_response"]["choices"][0]
            reasoning, content, arguments = _read(choice["token_ids"])
            call = {"id": "call-0", "type": "function", "function": {"name": "f", "arguments": arguments}}
            message = {"role": "assistant", "reasoning": reasoning, "content": content}
            calls = [call] if arguments else []
            return web.json_response({"choices": [{"index": 0, "message": {**message, "tool_calls": calls}}]})
        chunk, state = body["generate_chunk"], body["stream_state"] or {"output_token_ids": [], "ids": []}
        choice = chunk["choices"][0]
        tokens = [*state["output_token_ids"], *choice["token_ids"]]
        before, after = _read(state["output_token_ids"]), _read(tokens)
        reasoning, content, arguments = (new[len(old) :] for old, new in zip(before, after, strict=True))
        ids = state["ids"] or ([f"call-{id(self)}"] if arguments else [])
        call = {"index": 0, "function": {"arguments": arguments}}
        if arguments and not before[2]:
            call |= {"id": ids[0], "type": "function", "function": {"name": "f", "arguments": arguments}}
        delta = {"role": None, "reasoning": reasoning or None, "content": content or None}
        delta["tool_calls"] = [call] if arguments else []
        reason = choice["finish_reason"]
        if reason is not None and after[2]:
            reason = "tool_calls"
        return web.json_response(
            {
                "chunk": {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]},
                "stream_state": {"output_token_ids": tokens, "ids": ids},
            }
        )

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
        name = body.get("request_id", "")
        running = Running([*body["token_ids"], *done])
        if self.numerics is not None:
            await self._prefill(name, list(running.tokens), (body.get("kv_transfer_params") or {}).get("medley"))
        self.running_requests[name] = running
        try:
            await self._steps(request, response, fault, sampling=sampling, tokens=tokens, running=running)
        finally:
            if self.running_requests.get(name) is running:
                del self.running_requests[name]

    async def _steps(
        self,
        request: web.Request,
        response: web.StreamResponse,
        fault: Fault | None,
        *,
        sampling: dict[str, Any],
        tokens: list[int],
        running: Running,
    ) -> None:
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
            if running.ends.is_set():
                await response.write(self._event([], "abort", {}))
                break
            made += len(step)
            running.tokens += step
            await response.write(self._event(step, "length" if made == len(tokens) else None, sampling))
        await response.write(b"data: [DONE]\n\n")

    async def _break(self, request: web.Request, response: web.StreamResponse, fault: Fault, token: int) -> None:
        match fault.kind:
            case "cut":
                # Not `abort`: its RST may take tokens along that were sent before, and tests count them.
                request.transport.close()  # type: ignore[union-attr]
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


def _read(tokens: Sequence[int]) -> tuple[str, str, str]:
    spelled = [f" {token}" for token in tokens]
    return "".join(spelled[:5]), "".join(spelled[5:10]), "".join(spelled[10:])


def _answer(message: Any) -> web.Response:
    return web.Response(text=message.model_dump_json(), content_type="application/json")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _logprob(token: int, top: int) -> dict[str, Any]:
    tops = [{"token_id": (token + n) % VOCABULARY, "logprob": -0.5 - n, "rank": n + 1} for n in range(max(top, 1))]
    return {"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": tops}
