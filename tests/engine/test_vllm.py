"""The engine pod with real vLLM on this machine's CPU: one engine serves all tests of this module but the last."""

import asyncio
import json
import os
import signal

import aiohttp
import pytest
import pytest_asyncio

from e2e.vllm_venv import ensure_venv
from medley.testing.certificates import Issuer
from medley.wire.assignment import Capability
from medley.wire.assignment import EnginePhase as Phase
from medley.wire.resume import RESUME_OUTPUT_TOKEN_IDS
from tests.engine.pod import KEY, assignment, pod, tls
from tests.model import ensure_model

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

ARGS = (
    "--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "8",
    "--max-num-batched-tokens", "64",  # less than PROMPT: every prefill is chunked
)  # fmt: skip
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "MEDLEY_STALL_LIMIT": "60",  # other engines may run on this machine
    "MEDLEY_GRACE": "120",
}
PROMPT = [(7 * i * i + 13 * i + 5) % 500 + 3 for i in range(150)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def it(tmp_path_factory):
    # As in a cluster: vLLM behind the supervisor's TLS.
    async with pod(
        tmp=tmp_path_factory.mktemp("pod"),
        python=str(ensure_venv()),
        fake=False,
        environment=ENVIRONMENT,
        issuer=Issuer.new(),
    ) as one:
        await one.assign(assignment(str(ensure_model()), *ARGS, max_model_len=2048))
        await one.until(Phase.SERVING, limit_s=180)
        yield one


async def tokens(it, prompt: list[int], **sampling) -> list[int]:
    body = {
        "token_ids": prompt,
        "sampling_params": {"ignore_eos": True, "detokenize": False} | sampling,
        "stream": False,
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    async with it.session.post(
        f"{it.engine}/inference/v1/generate", json=body, headers=headers, **tls(it.router)
    ) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["choices"][0]["token_ids"]


async def test_the_report_names_version_and_capabilities(it):
    report = await it.when(lambda r: r.tokens_generated >= 1)  # it made one before it said that it serves
    assert (report.phase, report.restarts) == (Phase.SERVING, 0)
    assert report.engine_version.startswith("0.32.0")
    assert report.capabilities == (Capability.RESUME_EXACT, Capability.CARRY_KV)


@pytest.mark.parametrize("path", [
    "/v1/models", "/v1/completions", "/v1/chat/completions/render", "/inference/v1/generate", "/version", "/tokenize",
    "/invocations", "/ping", "/load", "/docs", "/openapi.json", "/no-such-path",
])  # fmt: skip
async def test_nothing_but_health_and_metrics_without_the_key(it, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        for method in ("GET", "POST", "OPTIONS"):
            async with it.session.request(
                method, it.engine + path, headers=headers, data=b"{}", **tls(it.router)
            ) as answer:
                assert answer.status == 401


async def test_health_metrics_and_render(it):
    for path in ("/health", "/metrics"):
        async with it.session.get(it.engine + path, **tls(it.router)) as answer:
            assert answer.status == 200
    chat = {"model": "m", "messages": [{"role": "user", "content": "the quick brown fox"}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with it.session.post(
        f"{it.engine}/v1/chat/completions/render", json=chat, headers=headers, **tls(it.router)
    ) as answer:
        assert answer.status == 200
        assert (await answer.json())["token_ids"]
    async with it.session.get(it.status + "/tokenizer.json") as answer:
        assert (answer.status, "model" in json.loads(await answer.text())) == (200, True)


@pytest.mark.parametrize("sampling", [
    pytest.param({"temperature": 0.0}, id="greedy"),
    pytest.param({"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7}, id="penalties"),
    pytest.param({"temperature": 0.0, "repetition_penalty": 1.3}, id="repetition penalty"),
    pytest.param({"temperature": 1.0, "seed": 7}, id="seeded"),
    pytest.param({"temperature": 0.9, "seed": 8, "top_p": 0.9, "top_k": 40, "frequency_penalty": 0.5}, id="seeded, top-p, top-k, penalty"),
    pytest.param({"temperature": 0.0, "structured_outputs": {"regex": "(ab|ba|fox)( (the|lazy) [a-z]{3}){12}"}}, id="regex"),
    pytest.param({"temperature": 1.0, "seed": 9, "structured_outputs": {"regex": "[a-z ]{40,60}"}}, id="seeded regex"),
    pytest.param({"temperature": 0.0, "min_tokens": 40, "ignore_eos": False, "stop_token_ids": list(range(3, 120))}, id="min_tokens"),
])  # fmt: skip
async def test_a_resumed_request_goes_on_as_if_never_cut(it, sampling):
    whole = await tokens(it, PROMPT, max_tokens=48, **sampling)
    assert len(whole) > 20
    for cut in (1, 17, len(whole) - 1):
        extra = {"extra_args": {RESUME_OUTPUT_TOKEN_IDS: whole[:cut]}}
        rest = await tokens(it, PROMPT, max_tokens=48, **sampling, **extra)
        assert (cut, rest) == (cut, whole[cut:])


async def test_without_the_capability_the_same_cut_would_show(it):
    """The contrast that gives the test above its meaning: prompt + committed as a new prompt differs."""
    sampling = {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7}
    whole = await tokens(it, PROMPT, max_tokens=48, **sampling)
    assert await tokens(it, PROMPT + whole[:17], max_tokens=31, **sampling) != whole[17:]


@pytest.mark.parametrize(
    ("committed", "sampling", "message"),
    [
        ("abc", {}, "expected a list of token ids"),
        ([1, -1], {}, "expected a list of token ids"),
        ([10**9], {}, "expected a list of token ids"),
        ([1.5], {}, "expected a list of token ids"),
        ([True], {}, "expected a list of token ids"),
        ([5] * 48, {}, "are there already"),
        ([5] * 1900, {"max_tokens": 5000}, "do not fit"),
        ([5], {"n": 2, "temperature": 1.0}, "expected n=1"),
    ],
)
async def test_what_cannot_be_resumed_is_refused_and_harms_nobody(it, committed, sampling, message):
    sampling = {"max_tokens": 48, "extra_args": {RESUME_OUTPUT_TOKEN_IDS: committed}} | sampling
    body = {"token_ids": PROMPT, "sampling_params": sampling, "stream": False}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with it.session.post(
        f"{it.engine}/inference/v1/generate", json=body, headers=headers, **tls(it.router)
    ) as answer:
        text = await answer.text()
        assert answer.status == 400, text
    assert message in text
    assert (await it.state()).phase is Phase.SERVING


async def test_a_grammar_that_does_not_accept_the_tokens_fails_that_request_alone(it):
    extra = {"structured_outputs": {"regex": "[0-9]+"}, "extra_args": {RESUME_OUTPUT_TOKEN_IDS: [40, 41, 42]}}
    body = {"token_ids": PROMPT, "sampling_params": {"max_tokens": 8} | extra, "stream": False}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with it.session.post(
        f"{it.engine}/inference/v1/generate", json=body, headers=headers, **tls(it.router)
    ) as answer:
        assert answer.status >= 400
    assert await tokens(it, PROMPT, max_tokens=2, temperature=0.0)


async def test_sigterm_under_a_stream_finishes_it(it):
    """Last: it ends the engine."""
    stream = it.generate(
        300, token_ids=PROMPT, sampling_params={"max_tokens": 300, "temperature": 0.0, "ignore_eos": True}
    )
    received = [json.loads((await anext(stream)).removeprefix("data: "))]
    it.process.send_signal(signal.SIGTERM)
    await it.until(Phase.DRAINING)
    assert await it.ready() == 503
    received += [json.loads(line.removeprefix("data: ")) async for line in stream if line.startswith("data: {")]
    assert sum(len(choice["token_ids"]) for part in received for choice in part["choices"]) == 300
    assert await it.end(limit_s=60) == 0
    with pytest.raises(aiohttp.ClientError):
        await it.session.get(it.engine + "/health", **tls(it.router))
    pids = [int(line.rpartition("pid=")[2].partition(")")[0]) for line in it.lines if "(EngineCore pid=" in line]
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    await asyncio.sleep(0)
