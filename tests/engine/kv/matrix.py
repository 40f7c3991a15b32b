"""Carries streams between engines of all tensor and pipeline sizes, and compares every token. Run by hand:

    python -m tests.engine.kv.matrix [--engines tp1 tp1b tp2 pp2] [--sampling greedy seeded] [--report FILE]

Streams go through a router, to which the source gives notice: it copies ahead, cuts and carries as it would in service.
Those of one pair of engines leave together. `a copy ahead` asks the engines themselves: one round while the source goes
on, then the cut. Uninterrupted runs are made on one engine, one of each sampling, and all pairs are held against them; a
prompt of which two likeliest tokens come too near to each other is replaced.

What is there is written as it comes, and what the report has is not done again: a run may be stopped. All of it takes
twelve minutes on two cores. Not part of `make test`; the two engines of `test_vllm_carry.py` and `test_vllm_moves.py`
are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, permutations
from pathlib import Path

from e2e.vllm_venv import ensure_venv
from medley.router.text import TextRules, TextStream
from tests.engine.kv.cases import (
    AHEAD,
    FEWEST_TOKENS,
    KINDS,
    LEAST_GAP,
    Said,
    ask,
    body,
    least_gap,
    same,
    stop_within,
    with_logprobs,
)
from tests.engine.kv.direct import BEGUN, Case, Reference, carried, copied_ahead
from tests.engine.kv.engines import engines, since, unpinned
from tests.model import ensure_model
from tests.router.moving import Moving, moving, until

ONES = {
    "tp1": (),
    "tp2": ("--tensor-parallel-size", "2"),
    "pp2": ("--pipeline-parallel-size", "2"),
    "tp2pp2": ("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"),
}
TWIN = "b"  # ends the name of another engine of the same size
SIZES = {name + end: arguments for name, arguments in ONES.items() for end in ("", TWIN)}
# Every pair, of engines that fit into 24 GB together; the first makes the uninterrupted runs.
TOGETHER = (
    ("tp1", "tp1b"), ("tp2", "tp2b"), ("pp2", "pp2b"), ("tp2pp2", "tp2pp2b"),
    ("tp1", "tp2", "pp2"), ("tp1", "tp2pp2"), ("tp2", "tp2pp2"), ("pp2", "tp2pp2"),
)  # fmt: skip
# Few blocks, for memory's sake; near ties are judged after penalties and grammars.
COMMON = (
    "--num-gpu-blocks-override", "512", "--logprobs-mode", "processed_logprobs",
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
)  # fmt: skip
NOTICE_S = 600.0  # so long that it forces nothing
MOST_WAVES, MOST_PROMPTS = 3, 24


@dataclass
class Report:
    """What is there already, as a file."""

    path: Path
    references: dict[str, Reference] = field(default_factory=dict)  # by sampling
    results: dict[Case, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Report:
        report = cls(path)
        if path.exists():
            there = json.loads(path.read_text())
            for each in there["references"]:
                sampling, said = each.pop("sampling"), [Said(**choice) for choice in each.pop("said")]
                report.references[sampling] = Reference(said=said, **each)
            report.results = {Case(*each["case"]): each for each in there["results"]}
        return report

    def write(self) -> None:
        references = [{"sampling": sampling, **asdict(each)} for sampling, each in self.references.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"results": list(self.results.values()), "references": references}, indent=1))


def pairs(started: Sequence[str]) -> list[tuple[str, str]]:
    """Every ordered pair of sizes; of two engines of one size, one direction."""
    return [pair for pair in permutations(started, 2) if pair[1] == pair[0] + TWIN or ONES.keys() >= {*pair}]


def holds(result: dict) -> bool:
    """Whether a stream was carried, is the uninterrupted one, and cost no more than a token for each call."""
    return (
        result["equal"]
        and result["how"] == ["carried"] * len(result["how"])
        and result["exact"] is not False
        and result.get("straddled", True)
    )


def table(results: dict[Case, dict]) -> str:
    """The results by pair and sampling: `=` holds, tokens computed for copies + carries, and cut after how many of all.

    `?`: others of the same notice were computed again, so it is not known what this one cost.
    """
    columns = [*KINDS, AHEAD]
    rows = [pair for pair in pairs(list(SIZES)) if any(case[:2] == pair for case in results)]
    lines = [
        ["source -> target", *columns],
        *([" -> ".join(pair), *(_cell(results.get(Case(*pair, sampling))) for sampling in columns)] for pair in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(result: dict | None) -> str:
    if result is None:
        return "-"
    cost = f"{result['copies']}+{len(result['how'])}" if result["exact"] is not None else "?"
    cost = f"{cost} {result['cut']}/{result['tokens']}"
    return f"{'=' if holds(result) else 'NO'} {cost}"


async def reference(stage: Moving, sampling: str) -> Reference:
    """The first prompt of which the likeliest tokens are far enough apart, and its uninterrupted run.

    A stream that ends by itself must not be so short that it ends before it is cut.
    """
    kind, rejected = KINDS.get(sampling, KINDS["greedy"]), 0
    for number in range(MOST_PROMPTS):
        name = f"{sampling} {number}"
        more = with_logprobs(kind) if kind.screened else {}
        said, request = await ask(stage.url, kind.path, body(kind, name, f"{name}: whole", **more))
        gap = least_gap(stage.heard[f"{request}-0"]) if kind.screened else None
        if (gap or math.inf) < LEAST_GAP:
            rejected += 1
            continue
        if kind.ends and len(stage.committed(request)[0]) < FEWEST_TOKENS:
            continue
        if "logprobs" not in kind.sampling:
            said = [replace(each, logprobs=[]) for each in said]
        if kind.stops:
            stop = stop_within(said[0].text)
            said, request = await ask(stage.url, kind.path, body(kind, name, f"{name}: stopped", stop=stop))
            assert said[0].stop_reason == stop
        return Reference(name, said, stage.committed(request), gap, rejected)
    raise AssertionError(f"{sampling}: none of {MOST_PROMPTS} prompts will do; take shorter streams")


async def references(stage: Moving, on: str, report: Report, samplings: Sequence[str]) -> None:
    """Make the uninterrupted runs that are missing."""
    stage.show(**{on: None})
    stage.forget()

    async def one(sampling: str) -> None:
        report.references[sampling] = await reference(stage, sampling)
        report.write()

    async with asyncio.TaskGroup() as group:
        for sampling in set(samplings) - report.references.keys():
            group.create_task(one(sampling))


async def wave(stage: Moving, pair: tuple[str, str], wholes: dict[Case, Reference], number: int) -> list[dict]:
    """Ask everything of the source once more, and give it notice as soon as all streams have begun."""
    source, target = pair
    arrived, kinds = stage.engines[target], {case: KINDS[case.sampling] for case in wholes}
    stage.show(known=[target], **{source: None})
    await until(lambda: {*pair} <= stage.fleet.knowledge.states.keys())
    computed = await arrived.prompt_tokens()
    stage.forget()
    asking = {}
    for case, whole in wholes.items():
        stop = {"stop": whole.said[0].stop_reason} if kinds[case].stops else {}
        asked = body(kinds[case], whole.name, f"{case} {number}", **stop)
        asking[case] = asyncio.create_task(ask(stage.url, kinds[case].path, asked))
    streams = sum(kind.choices for kind in kinds.values())
    await until(lambda: _begun(stage, streams) or any(each.done() for each in asking.values()), every=0.01)
    with stage.insisting(target):
        stage.show(**{source: NOTICE_S, target: None})
        answers = {case: await each for case, each in asking.items()}
    await asyncio.gather(*(unpinned(stage.engines[each]) for each in pair))
    compute = since(computed, await arrived.prompt_tokens())["local_compute"]
    results = [_result(stage, case, wholes[case], said, request) for case, (said, request) in answers.items()]
    calls = sum(url == arrived.url for url, _ in stage.calls)
    again = any("computed again" in each["how"] for each in results)  # then the rest cannot be told apart
    common = {"local_compute": compute, "calls": calls, "exact": None if again else compute == calls}
    return [each | common | {"wave": number} for each in results]


def _begun(stage: Moving, streams: int) -> bool:
    return len(stage.attempts) == streams and all(each.tokens >= BEGUN for each in stage.attempts)


def _result(stage: Moving, case: Case, whole: Reference, said: list[Said], request: str) -> dict:
    ways = stage.ways(request)
    cut = [way[0].tokens for way in ways]
    result = {
        "case": case, "equal": same(said, whole.said) and stage.committed(request) == whole.tokens,
        "how": [_how(way, case.target) for way in ways], "copies": stage.copies(request),
        "tokens": sum(map(len, whole.tokens)), "cut": sum(cut), "gap": whole.gap, "rejected": whole.rejected,
    }  # fmt: skip
    return result | (
        _straddled(stage, request, str(whole.said[0].stop_reason), cut[0]) if KINDS[case.sampling].stops else {}
    )


def _how(way: Sequence, target: str) -> str:
    """How a stream left its engine."""
    if len(way) == 1:
        return "finished"
    carried = len(way) == 2 and way[1].replica.name == target and way[1].ticket is not None
    return "carried" if carried else "computed again"


def _straddled(stage: Moving, request: str, stop: str, cut: int) -> dict:
    """Where the stop string began and ended, in tokens; the cut has to be between."""
    history = stage.ways(request)[0][0].history
    text = TextStream(stage.vocabulary, history.choice.rendered.token_ids, TextRules())
    lengths = list(accumulate(len(text.push([token]).text) for token in history.committed))
    begins = next(n for n, length in enumerate(lengths, 1) if length > lengths[-1] - len(stop))
    return {"stop": [begins, len(lengths)], "straddled": begins <= cut < len(lengths)}


async def cross(stage: Moving, report: Report, cases: Sequence[Case]) -> None:
    """Do what is missing of one pair and one way. What ended before it was cut, or was computed again, is tried again."""
    pair = cases[0][:2]
    leaving, arrived = (stage.engines[each] for each in pair)
    for number in range(MOST_WAVES):
        left = {case: report.references[case.sampling] for case in cases if _is_open(report.results.get(case))}
        if not left:
            return
        if cases[0].sampling == AHEAD:
            results = [await copied_ahead(leaving, arrived, case, whole) for case, whole in left.items()]
        elif KINDS[cases[0].sampling].engines_own:
            results = await carried(leaving, arrived, left, number)
        else:
            results = await wave(stage, pair, left, number)
        for result in results:
            if result is not None:
                _keep(report, result)


def ways(cases: Sequence[Case]) -> list[list[Case]]:
    """What is asked together: by pair, first what engines do by themselves, last what goes through the router."""

    def way(case: Case) -> int:
        return 1 if case.sampling == AHEAD else 0 if KINDS[case.sampling].engines_own else 2

    together: dict[tuple[int, str, str], list[Case]] = {}
    for case in cases:
        together.setdefault((way(case), *case[:2]), []).append(case)
    return [together[each] for each in sorted(together, key=lambda each: each[0])]


def _is_open(result: dict | None) -> bool:
    """Whether a stream was not asked for yet, or is right and was not moved as it should have been."""
    return result is None or (result["equal"] and not holds(result))


def _keep(report: Report, result: dict) -> None:
    missed = report.results.get(result["case"])
    before = [] if missed is None else [*missed["missed"], missed["how"]]
    report.results[result["case"]] = result | {"missed": before}
    report.write()
    sys.stdout.write(f"{json.dumps(result)}\n")
    sys.stdout.flush()


async def run(names: Sequence[str], samplings: Sequence[str], report: Report) -> bool:
    """Fill the report with what these engines can show; return whether they had all their blocks back."""
    cases = [Case(*pair, sampling) for pair in pairs(names) for sampling in samplings]
    cases = [case for case in cases if case not in report.results]
    return not cases or await _fill(names, cases, report)


async def _fill(names: Sequence[str], cases: Sequence[Case], report: Report) -> bool:
    python, model = await asyncio.to_thread(ensure_venv), await asyncio.to_thread(ensure_model)
    folder = Path(tempfile.mkdtemp(prefix="medley-matrix-"))
    sizes = {name: (*SIZES[name], *COMMON) for name in names}
    async with (
        engines(folder, python, model, {"MEDLEY_KV_HOST": "127.0.0.1"}, **sizes) as started,
        moving(started, model, folder) as stage,
    ):
        for each in started:  # the first decode on several workers takes seconds
            await each.tokens("warm", [5, 6, 7], max_tokens=4)
        await references(stage, min(names, key=list(SIZES).index), report, [case.sampling for case in cases])
        for together in ways(cases):
            await cross(stage, report, together)
        states = [await each.state() for each in started]
    clean = all(each["free_blocks"] == each["total_blocks"] and not each["exports"] for each in states)
    sys.stdout.write(f"blocks {'all back' if clean else 'LEAKED'}: {', '.join(names)}\n")
    return clean


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=SIZES, help="at once; otherwise all, some after the others")
    parser.add_argument("--sampling", nargs="+", choices=[*KINDS, AHEAD], default=[*KINDS, AHEAD])
    parser.add_argument("--report", type=Path, default=Path("build/matrix.json"))
    options = parser.parse_args()
    report = Report.read(options.report)
    clean = [
        asyncio.run(run(names, options.sampling, report))
        for names in ([options.engines] if options.engines else TOGETHER)
    ]
    sys.stdout.write(f"{table(report.results)}\n")
    return 0 if all(clean) and all(map(holds, report.results.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
