"""Carries requests between engines of different tensor and pipeline sizes, and compares every token. Run by hand:

    python -m tests.engine.kv.matrix [--pairs tp1,tp2 tp1,pp2 tp2,pp2] [--sampling greedy seeded] [--report FILE]

Each pair of engines is started once and serves both directions. Hours on a shared machine, so not part of `make test`;
the two engines of `test_vllm_carry.py` are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from e2e.vllm_venv import ensure_venv
from tests.engine.kv.engines import Engine, engines
from tests.model import ensure_model

SIZES = {
    "tp1": (),
    "tp2": ("--tensor-parallel-size", "2"),
    "pp2": ("--pipeline-parallel-size", "2"),
    "tp2pp2": ("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2"),
}
SAMPLING = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
    "regex": {"structured_outputs": {"regex": "(ab|ba|fox)( (the|lazy) [a-z]{3}){12}"}},
    "logprobs": {"logprobs": 2},
}
TOKENS, CUT, PROMPT = 48, 16, 700


def prompt(seed: int) -> list[int]:
    return [(7 * i * i + (13 + seed) * i + 5 + 11 * seed) % 500 + 3 for i in range(PROMPT)]


async def move(source: Engine, target: Engine, kind: str, seed: int) -> dict:
    """Cut one stream on the source, end it on the target; say what was equal and what it cost."""
    sampling, tokens = SAMPLING[kind], prompt(seed)
    reference = await source.tokens(f"reference-{kind}-{seed}", tokens, max_tokens=TOKENS, **sampling)
    stream = source.stream(f"{kind}-{seed}", tokens, max_tokens=TOKENS, **sampling)
    await stream.at_least(CUT)
    (ticket,) = (await source.export([f"{kind}-{seed}"]))["tickets"]
    await stream.rest()
    before = await target.prompt_tokens()
    rest = target.stream(f"{kind}-{seed}", tokens, stream.tokens, ticket, max_tokens=TOKENS, **sampling)
    await rest.rest()
    after = await target.prompt_tokens()
    released = await source.release(ticket["export_id"])
    gaps = [later - earlier for earlier, later in pairwise(rest.times)]
    return {
        "source": source.name, "target": target.name, "sampling": kind,
        "equal": stream.tokens + rest.tokens == reference,
        "tokens": len(reference), "cut": len(stream.tokens),
        "local_compute": after["local_compute"] - before["local_compute"],
        "external": after["external_kv_transfer"] - before["external_kv_transfer"],
        "valid": ticket["valid_tokens"], "sources": len(ticket["sources"]),
        "pause_ms": round(1e3 * (rest.times[0] - stream.times[-1])) if rest.times else None,
        "itl_ms": round(1e3 * statistics.median(gaps)) if gaps else None,
        "released": released["unknown"] == [],
    }  # fmt: skip


async def run(pairs: list[str], kinds: list[str], report: Path) -> bool:
    python, model = await asyncio.to_thread(ensure_venv), await asyncio.to_thread(ensure_model)
    results: list[dict] = []
    for pair in pairs:
        folder = Path(tempfile.mkdtemp(prefix="medley-matrix-"))
        async with engines(folder, python, model, **{name: SIZES[name] for name in pair.split(",")}) as started:
            for warmed in started:  # the first decode on several workers takes seconds
                await warmed.tokens("warm", [5, 6, 7], max_tokens=4)
            first, second = started
            for source, target in ((first, second), (second, first)):
                for seed, kind in enumerate(kinds, start=len(results)):
                    results.append(await move(source, target, kind, seed))
                    sys.stdout.write(f"{json.dumps(results[-1])}\n")
                    sys.stdout.flush()
                    await asyncio.to_thread(report.write_text, json.dumps(results, indent=1))
            states = [await engine.state() for engine in started]
            clean = all(each["free_blocks"] == each["total_blocks"] and not each["exports"] for each in states)
            sys.stdout.write(f"{pair}: blocks {'all back' if clean else 'LEAKED'}\n")
            if not clean:
                return False
    return all(
        each["equal"] and each["released"] and each["local_compute"] == 1 and each["external"] == each["valid"]
        for each in results
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=["tp1,tp2", "tp1,pp2", "tp2,pp2"])
    parser.add_argument("--sampling", nargs="+", choices=SAMPLING, default=list(SAMPLING))
    parser.add_argument("--report", type=Path, default=Path("matrix.json"))
    options = parser.parse_args()
    return 0 if asyncio.run(run(options.pairs, options.sampling, options.report)) else 1


if __name__ == "__main__":
    sys.exit(main())
