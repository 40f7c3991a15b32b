"""`medley profile measure` against an endpoint that writes down what it did, by the same clock."""

from __future__ import annotations

import io
import itertools
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from medley.api.convert import profile, read_performance_profile
from medley.cli import main
from medley.cli.profile import load, measured
from medley.cli.profile.load import Effort, Endpoint
from medley.cli.profile.state import State
from medley.core.errors import EngineError, InvalidInputError
from medley.core.profiles import Confidence, ProfileSource
from medley.planning.measuring import Cell
from tests.cli.stub_openai import StubOpenAI

CELL = Cell(30, 4, 100.0)
EFFORT = Effort(requests=40, warm_up=5, most_waiting=1000, timeout_s=30.0, seed=7)


def asked(url: str, **changes) -> measured.Asked:
    default = measured.Asked(
        url=url,
        model="acme/model",
        served_as=None,
        accelerator_class="l4",
        tensor_parallel=2,
        pipeline_parallel=1,
        max_model_len=None,
        max_running=8,
        inputs=(30,),
        outputs=(4,),
        rates=(50.0, 100.0),
        growth=1.5,
        effort=EFFORT,
        token_ids=(10, 500),
        state=None,
        out=None,
    )
    return replace(default, **changes)


async def run(request: measured.Asked) -> tuple[int, str]:
    shown = io.StringIO()
    code = await measured._run(request, Console(file=shown, width=200))
    return code, shown.getvalue()


async def under_load(stub: StubOpenAI, cell=CELL, effort=EFFORT):
    async with stub.running() as url, load.session(None) as http:
        return await load.under_load(http, Endpoint(url, "stub", (10, 500)), cell, effort, done_one=lambda: None)


async def test_what_the_client_measures_is_what_the_endpoint_did():
    stub = StubOpenAI(prefill_s=0.02, token_s=0.005)
    samples, piled_up = await under_load(stub)
    assert (len(samples), piled_up, {each.failure for each in samples}) == (40, False, {None})
    by_prompt = {each.prompt: each for each in stub.served}
    sent = [tuple(body["prompt"]) for body in stub.bodies][EFFORT.warm_up :][: EFFORT.requests]
    for prompt, each in zip(sent, samples, strict=True):
        theirs = by_prompt[prompt]
        # A request is due before it comes, and a token is read after it was sent.
        assert each.arrived_s <= theirs.came_s
        assert each.first_s >= theirs.first_s
        assert each.last_s >= theirs.last_s
        assert each.ttft_s >= stub.prefill_s
        assert each.output_tokens == theirs.output_tokens == 4
    # TPOT is between tokens, so what is late by as much at both ends cancels out: the law shows, whatever the machine.
    law = statistics.median((each.last_s - each.first_s) / 3 for each in stub.served)
    assert statistics.median(each.tpot_s for each in samples) == pytest.approx(law, rel=0.5)


async def test_requests_do_not_wait_for_others():
    stub = StubOpenAI(prefill_s=0.2, slots=1)
    samples, piled_up = await under_load(stub, effort=replace(EFFORT, most_waiting=12))
    assert piled_up
    assert 1 < stub.most_at_once <= 12
    assert len(samples) < EFFORT.requests


async def test_arrivals_are_poisson_and_the_same_again():
    first = list(itertools.islice(load.gaps(CELL, 1), 4000))
    assert first == list(itertools.islice(load.gaps(CELL, 1), 4000))
    assert first != list(itertools.islice(load.gaps(CELL, 2), 4000))
    # An exponential distribution's mean is its deviation.
    assert statistics.fmean(first) == pytest.approx(1 / CELL.requests_per_second, rel=0.05)
    assert statistics.stdev(first) == pytest.approx(1 / CELL.requests_per_second, rel=0.08)


async def test_no_two_prompts_are_alike_and_their_length_is_exact():
    stub = StubOpenAI()
    await under_load(stub)
    prompts = [tuple(body["prompt"]) for body in stub.bodies]
    assert len(set(prompts)) == len(prompts)
    assert {len(prompt) for prompt in prompts} == {30}
    assert {token for prompt in prompts for token in prompt} <= set(range(10, 501))
    assert {(body["max_tokens"], body["ignore_eos"], body["temperature"]) for body in stub.bodies} == {(4, True, 0)}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param("short", "asked for 30 + 4 tokens, the endpoint counted 30 + 3", id="fewer tokens than asked for"),
        pytest.param("no usage", "the endpoint reports no usage", id="no token counts"),
        pytest.param("refused", "HTTP 500: {", id="an error"),
        pytest.param("broken", "engine died", id="an error in the stream"),
    ],
)
async def test_an_endpoint_that_does_not_do_as_asked_ends_it_in_its_own_words(fault, words):
    stub = StubOpenAI(fault=fault)
    samples, _ = await under_load(stub)
    assert all(words in each.failure for each in samples)
    async with stub.running() as url:
        with pytest.raises(EngineError, match="a request of 30"):
            await run(asked(url))


async def test_the_manifest_is_one_that_medley_reads(tmp_path: Path, capsys):
    async with StubOpenAI().running() as url:
        code, shown = await run(asked(f"{url}/v1/", out=tmp_path / "profile.yaml"))
    text = (tmp_path / "profile.yaml").read_text()
    assert (code, capsys.readouterr().out) == (0, text)
    found = profile(read_performance_profile(yaml.safe_load(text)))
    assert (found.name, found.model, str(found.shape)) == ("model-l4-tp2", "acme/model", "l4-tp2")
    assert (found.source, found.confidence) == (ProfileSource.MEASURED, Confidence.LOW)
    assert (found.max_model_len, found.max_running) == (4096, 8)
    assert [(point.input_tokens, point.output_tokens, point.requests_per_second) for point in found.points] == [
        (30, 4, 50.0),
        (30, 4, 100.0),
    ]
    assert [each.percentile for each in found.points[0].latencies] == [50, 90, 95]
    assert "The engine reports 8000 tokens of KV cache." in text
    assert "50" in shown


async def test_rates_rise_to_saturation_and_stop_there(tmp_path: Path):
    stub = StubOpenAI(prefill_s=0.03, token_s=0.0, slots=1)
    effort = replace(EFFORT, requests=24, warm_up=0)
    async with stub.running() as url:
        await run(asked(url, rates=(), growth=4.0, effort=effort, state=tmp_path / "s"))
    lines = [json.loads(line) for line in (tmp_path / "s").read_text().splitlines()]
    alone, outcomes = lines[1], lines[2:]
    rates = [each["requestsPerSecond"] for each in outcomes]
    assert alone["aloneSeconds"] >= stub.prefill_s
    assert rates[0] == pytest.approx(0.2 / alone["aloneSeconds"], rel=0.01)
    assert [each["saturated"] for each in outcomes] == [False] * (len(outcomes) - 1) + [True]
    # One at a time, each 30 ms and more: 33 requests/s cannot be had.
    assert all(rate < 33 for rate in rates[:-1])


async def test_a_measurement_that_was_stopped_goes_on_where_it_was(tmp_path: Path, capsys):
    stub, state = StubOpenAI(), tmp_path / "state.jsonl"
    async with stub.running() as url:
        first = asked(url, rates=(50.0,), state=state)
        await run(first)
        before = len(stub.bodies)
        with state.open("a") as file:
            file.write('{"inputTokens": 30, "outputTo')  # killed while it wrote
        await run(replace(first, rates=(50.0, 100.0), outputs=(4, 4095)))
        assert len(stub.bodies) - before <= 2 * EFFORT.requests, "50/s is not measured again, nor a request alone"
        lines = [json.loads(line) for line in state.read_text().splitlines()]
        assert [line["requestsPerSecond"] for line in lines[2:]] == [50.0, 100.0]
        sent = len(stub.bodies)
        capsys.readouterr()
        await run(replace(first, rates=(50.0, 100.0)))
        assert len(stub.bodies) == sent, "all was found already"
        assert len(yaml.safe_load(capsys.readouterr().out)["spec"]["points"]) == 2
        with pytest.raises(InvalidInputError, match=r"another measurement \(seed differ\)"):
            await run(replace(first, effort=replace(EFFORT, seed=8)))


@pytest.mark.parametrize("text", ["not JSON\n", '["a list"]\n', '{"measurement": "medley profile measure"}\n'])
def test_a_file_that_is_no_state_is_refused_and_left_alone(tmp_path: Path, text):
    path = tmp_path / "state"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match="name another file"):
        State.opened(path, {"measurement": "medley profile measure", "seed": 1})
    assert path.read_text() == text


async def test_sizes_that_the_endpoint_does_not_serve_are_named_and_left_out():
    async with StubOpenAI(max_model_len=100).running() as url:
        _, shown = await run(asked(url, inputs=(30, 99), rates=(100.0,)))
        assert "99 + 4 tokens are longer than the 100 that it serves: left out" in shown
        with pytest.raises(InvalidInputError, match="no size fits"):
            await run(asked(url, inputs=(99,)))


async def test_what_the_endpoint_does_not_say_must_be_said():
    async with StubOpenAI(max_model_len=None).running() as url:
        with pytest.raises(InvalidInputError, match="--max-model-len"):
            await run(asked(url))
    async with StubOpenAI(models=("a", "b")).running() as url:
        with pytest.raises(InvalidInputError, match="the endpoint serves a, b: name one"):
            await run(asked(url))
        with pytest.raises(InvalidInputError, match="the endpoint serves a, b, not c"):
            await run(asked(url, served_as="c"))


async def test_the_key_is_sent():
    stub = StubOpenAI()
    async with stub.running() as url:
        await run(asked(url, rates=(100.0,), api_key="secret"))
    assert stub.keys == {"Bearer secret"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--inputs", "ten"], "--inputs: expected whole numbers"),
        (["--outputs", "0"], "--outputs: expected whole numbers"),
        (["--rates", "nan"], "--rates: expected requests/s above 0"),
        (["--token-ids", "9,3"], "--token-ids: expected two ids"),
    ],
)
def test_arguments_that_make_no_sense(options, words):
    result = CliRunner().invoke(
        main, ["profile", "measure", "http://127.0.0.1:9", "--class", "l4", "--max-running", "8", *options]
    )
    assert result.exit_code == 2
    assert words in result.stderr


def test_nobody_there():
    result = CliRunner().invoke(
        main, ["profile", "measure", "http://127.0.0.1:9", "--class", "l4", "--max-running", "8"]
    )
    assert result.exit_code == 1
    assert "asking http://127.0.0.1:9/v1/models" in result.stderr


async def test_a_request_that_takes_too_long_has_failed():
    samples, _ = await under_load(
        StubOpenAI(prefill_s=1.0), effort=replace(EFFORT, requests=3, warm_up=0, timeout_s=0.05)
    )
    assert {each.failure for each in samples} == {"not done after 0.05 s"}
