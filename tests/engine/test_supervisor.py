"""The supervisor as a process, with a stand-in for vLLM: what operator, kubelet and routers see."""

import asyncio
import json
import os
import signal
from datetime import UTC, datetime, timedelta

import pytest

from medley.wire.assignment import EnginePhase as Phase
from tests.engine.pod import KEY, assignment, pod


async def test_an_assignment_is_served_and_comes_again_without_effect(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        assert ((await it.state()).phase, await it.ready()) == (Phase.UNASSIGNED, 503)
        assert (await it.assign(assignment(model))).phase is Phase.STARTING
        report = await it.until(Phase.SERVING)
        assert (report.generation, report.restarts, report.engine_version) == (1, 0, "0.32.0")
        assert await it.ready() == 200
        again = await it.assign(assignment(model))
        assert (again.phase, again.generation) == (Phase.SERVING, 1)
        higher = await it.assign(assignment(model, generation=2))  # same engine: adopted, not restarted
        assert (higher.phase, higher.generation) == (Phase.SERVING, 2)
        assert sum("medley| starting" in line for line in it.lines) == 1


async def test_an_older_or_contradicting_assignment_is_refused(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model, generation=3))
        older = await it.call("PUT", "/v1/assignment", assignment(model, generation=2).model_dump_json())
        assert older == (409, {"error": "generation 2 is older than generation 3 in force; observe again"})
        other = assignment(model, generation=3, served_model_name="n").model_dump_json()
        assert await it.call("PUT", "/v1/assignment", other) == (
            409,
            {"error": "generation 3 is in force with other content; raise the generation"},
        )
        assert (await it.state()).generation == 3


async def test_a_changed_assignment_drains_and_starts_anew(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        report = await it.assign(assignment(model, generation=2, served_model_name="n"))
        assert (report.phase, report.generation) == (Phase.DRAINING, 1)
        await it.when(lambda r: r.phase is Phase.SERVING and r.generation == 2)
        assert [line for line in it.lines if line.startswith("vllm| serving")] == ["vllm| serving m", "vllm| serving n"]


async def test_healthy_is_not_ready_without_a_token(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model, "--fake-no-tokens"))
        await it.says("vllm| serving m")
        await it.when(lambda r: r.running == 1)  # the probe, unanswered
        assert ((await it.state()).phase, await it.ready()) == (Phase.STARTING, 503)
        await it.fake("recover")
        await it.until(Phase.SERVING)


async def test_a_stalled_engine_is_not_ready_and_recovers(model, tmp_path):
    async with pod(tmp=tmp_path, environment={"MEDLEY_RESTART_LIMIT": "60"}) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        stream = it.generate(10**6)
        await anext(stream)
        await it.fake("stall")
        report = await it.until(Phase.STALLED)
        assert "no token for" in report.message
        assert await it.ready() == 503
        await it.fake("recover")
        await it.until(Phase.SERVING)
        assert (await it.state()).restarts == 0
        await stream.aclose()


async def test_a_stall_that_lasts_restarts_the_engine(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model, "--fake-ignore-sigterm", "--fake-child"))
        await it.until(Phase.SERVING)
        await it.fake("stall")
        stream = it.generate(5)
        with pytest.raises(Exception, match=r"(?i)connect|disconnect|payload"):
            async for _ in stream:
                pass
        await it.when(lambda r: r.restarts == 1 and r.phase is Phase.SERVING)
        children = [int(line.split()[-1]) for line in it.lines if line.startswith("vllm| child")]
        assert len(children) == 2
        with pytest.raises(ProcessLookupError):
            os.kill(children[0], 0)  # killed with its group, and buried


async def test_an_engine_that_dies_is_started_again(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        await it.fake("die")
        report = await it.when(lambda r: r.restarts == 1)
        assert "CUDA error: an illegal memory access (attempt 1 of 5" in report.message
        assert report.phase is Phase.STARTING
        await it.until(Phase.SERVING)


async def test_bad_usage_fails_at_once_in_vllms_words(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model, "--no-such-option"))
        report = await it.until(Phase.FAILED)
        assert report.message == (
            "vLLM ended with status 2: api_server.py: error: unrecognized arguments: --no-such-option (attempt 1)"
        )
        assert (await it.assign(assignment(model, "--no-such-option"))).phase is Phase.FAILED
        await it.assign(assignment(model, generation=2))
        await it.until(Phase.SERVING)


async def test_a_model_that_is_not_there_fails_by_name_and_heals_when_it_comes(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        path = tmp_path / "volume" / "llama"
        await it.assign(assignment(str(path)))
        report = await it.until(Phase.FAILED)
        assert report.message == (
            f"spec.model.source.pvc.path: {path} not found in the volume; put the model there or correct the path"
        )
        assert report.restarts == 0
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        await it.until(Phase.SERVING)


async def test_a_drain_lets_streams_end_then_stops(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        stream = it.generate(60)
        await anext(stream)
        assert (await it.drain()).phase is Phase.DRAINING
        assert await it.ready() == 503
        assert sum([line.startswith("data: {") async for line in stream]) == 59
        report = await it.until(Phase.STOPPED)
        assert report.message == "drain was asked for"
        assert (await it.assign(assignment(model))).phase is Phase.STOPPED  # the same again: nothing happens
        await it.assign(assignment(model, generation=2))
        await it.until(Phase.SERVING)


async def test_a_drains_deadline_cuts_off_what_still_runs(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        stream = it.generate(10**6)
        await anext(stream)
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        await it.drain(f'{{"deadline": "{soon.isoformat()}"}}')
        await it.until(Phase.STOPPED)
        await stream.aclose()


async def test_sigterm_finishes_the_stream_and_exits_0(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        stream = it.generate(60)
        await anext(stream)
        it.process.send_signal(signal.SIGTERM)
        await it.until(Phase.DRAINING)
        assert await it.ready() == 503
        refused = await it.call("PUT", "/v1/assignment", assignment(model, generation=2).model_dump_json())
        assert refused == (409, {"error": "this pod is ending (SIGTERM); assign another one"})
        assert sum([line.startswith("data: {") async for line in stream]) == 59
        assert await it.end() == 0
        assert not any(line.startswith("vllm| child") for line in it.lines)


async def test_sigterm_waits_for_engines_that_pull_what_moved(model, tmp_path):
    async with pod(tmp=tmp_path, environment={"MEDLEY_GRACE": "60"}) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        await it.fake("pin")
        it.process.send_signal(signal.SIGTERM)
        await it.until(Phase.DRAINING)
        await asyncio.sleep(2.5)
        assert (await it.state()).phase is Phase.DRAINING
        await it.fake("unpin")
        assert await it.end() == 0


async def test_at_the_end_of_the_grace_streams_end_after_a_whole_token(model, tmp_path):
    async with pod(tmp=tmp_path, environment={"MEDLEY_GRACE": "6"}) as it:
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        stream = it.generate(10**6)
        await anext(stream)
        it.process.send_signal(signal.SIGTERM)
        lines = [line async for line in stream if line.startswith("data: {")]
        assert json.loads(lines[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "abort"
        assert await it.end() == 0
        assert "vllm| asked to end all requests" in it.lines


async def test_a_vllm_without_the_plugin_is_ended_all_the_same(model, tmp_path):
    async with pod(tmp=tmp_path, environment={"MEDLEY_GRACE": "5"}) as it:
        await it.assign(assignment(model, "--fake-plain"))
        await it.until(Phase.SERVING)
        stream = it.generate(10**6)
        await anext(stream)
        it.process.send_signal(signal.SIGTERM)
        assert await it.end() == 0
        assert "medley| ending vLLM's requests: status 404; they end with vLLM" in it.lines
        await stream.aclose()


async def test_sigterm_ends_within_the_grace_even_if_vllm_ignores_it(model, tmp_path):
    async with pod(tmp=tmp_path, environment={"MEDLEY_GRACE": "2"}) as it:
        await it.assign(assignment(model, "--fake-ignore-sigterm"))
        await it.until(Phase.SERVING)
        stream = it.generate(10**6)
        await anext(stream)
        it.process.send_signal(signal.SIGTERM)
        assert await it.end() == 0
        assert "vllm| SIGTERM, and I stay" in it.lines
        await stream.aclose()


async def test_sigterm_without_an_engine_exits_0(tmp_path):
    async with pod(tmp=tmp_path) as it:
        it.process.send_signal(signal.SIGTERM)
        assert await it.end() == 0


async def test_the_key_is_asked_for(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        for key in (None, "", "wrong", KEY[:-1], KEY + "x", "\u00fc"):
            for method, path in (("PUT", "/v1/assignment"), ("POST", "/v1/drain"), ("GET", "/v1/state")):
                status, body = await it.call(method, path, assignment(model).model_dump_json(), key=key)
                assert (status, list(body)) == (401, ["error"])
        assert (await it.state()).phase is Phase.UNASSIGNED
        assert KEY not in "\n".join(it.lines)


async def test_the_read_only_port_tells_what_routers_need(model, tmp_path):
    async with pod(tmp=tmp_path) as it:
        async with it.session.get(it.status + "/tokenizer.json") as answer:
            assert (answer.status, await answer.text()) == (404, "tokenizer.json: no model is assigned yet\n")
        await it.assign(assignment(model))
        await it.until(Phase.SERVING)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            async with it.session.get(f"{it.status}/{name}") as answer:
                assert (answer.status, await answer.json()) == (200, {"file": name})
        async with it.session.get(it.status + "/livez") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
        async with it.session.get(it.status + "/metrics") as answer:
            text = await answer.text()
        assert 'medley_engine_phase{phase="Serving"} 1' in text
        assert "medley_engine_ready 1" in text


async def test_without_a_key_file_it_says_what_to_do(tmp_path):
    with pytest.raises(AssertionError, match="MEDLEY_KEY_FILE: reading /nowhere"):
        async with pod(tmp=tmp_path, environment={"MEDLEY_KEY_FILE": "/nowhere"}):
            pass
