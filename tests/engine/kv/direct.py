"""Streams carried by the engines' own endpoints, without a router: exported, and gone on with from their tickets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import pytest

from tests.engine.kv.cases import KINDS, Said, prompt_tokens
from tests.engine.kv.engines import Engine, Stream, since, unpinned

# Tokens of each stream before it is cut, and after.
BEGUN, AFTER = 6, 32


class Case(NamedTuple):
    """One way to sample, from one engine to another."""

    source: str
    target: str
    sampling: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}, {self.sampling}"


@dataclass
class Reference:
    """An uninterrupted run. `name` draws its prompt."""

    name: str
    said: list[Said]
    tokens: list[list[int]]
    gap: float | None  # least one between the two likeliest; None: they are not all there is to it
    rejected: int  # prompts before this one, for a near tie


async def copied_ahead(leaving: Engine, arrived: Engine, case: Case, whole: Reference) -> dict | None:
    """Make one round while the source goes on, then the cut. None: the stream ended before."""
    name, prompt, tokens = str(case), prompt_tokens(whole.name), whole.tokens[0]
    stream = leaving.stream(name, prompt, salt=name, max_tokens=len(tokens))
    await stream.at_least(BEGUN)
    counts = [await arrived.prompt_tokens()]
    if not (copies := (await leaving.export([name], keep_running=True))["tickets"]):
        return None
    (copy,) = copies
    there = (prompt + tokens)[: copy["valid_tokens"] + 1]  # what the source has made by then
    await arrived.tokens(f"{name} copy", there, (), copy, salt=name, max_tokens=1)
    counts.append(await arrived.prompt_tokens())
    tickets = (await leaving.export([name]))["tickets"]
    await stream.rest()
    if not tickets:
        await leaving.release(copy["export_id"])
        return None
    (ticket,) = tickets
    most = min(len(stream.tokens) + AFTER, len(tokens))
    rest = await arrived.tokens(name, prompt, stream.tokens, ticket, salt=name, max_tokens=most)
    counts.append(await arrived.prompt_tokens())
    await leaving.release(copy["export_id"], ticket["export_id"])
    await asyncio.gather(unpinned(leaving), unpinned(arrived))
    spent = [since(before, after) for before, after in pairwise(counts)]
    valid = [copy["valid_tokens"], ticket["valid_tokens"]]
    came = [each["external_kv_transfer"] + each["local_cache_hit"] for each in spent]
    return {
        "case": case, "how": ["carried"], "copies": 1, "calls": 2, "by_call": spent, "cut": len(stream.tokens),
        "equal": stream.tokens + rest == tokens[:most] and came == valid,
        "local_compute": sum(each["local_compute"] for each in spent), "tokens": most,
        "exact": [each["local_compute"] for each in spent] == [1, 1],
        "gap": whole.gap, "rejected": whole.rejected,
    }  # fmt: skip


async def carried(leaving: Engine, arrived: Engine, wholes: Mapping[Case, Reference], number: int) -> list[dict]:
    """Export all these streams at once, and go on with their tickets."""
    names = {case: f"{case} {number}" for case in wholes}
    asked = {case: {**KINDS[case.sampling].sampling, "salt": name} for case, name in names.items()}
    prompts = {case: prompt_tokens(whole.name) for case, whole in wholes.items()}
    streams = {
        case: leaving.stream(name, prompts[case], **asked[case], max_tokens=KINDS[case.sampling].most_tokens)
        for case, name in names.items()
    }
    await asyncio.gather(*(each.at_least(BEGUN) for each in streams.values()))
    tickets = {each["request_id"]: each for each in (await leaving.export(list(names.values())))["tickets"]}
    await asyncio.gather(*(each.rest() for each in streams.values()))
    before = await arrived.prompt_tokens()
    rests: dict[Case, Stream] = {}
    for case, stream in streams.items():
        if (ticket := tickets.get(names[case])) is not None:
            most = min(len(stream.tokens) + AFTER, KINDS[case.sampling].most_tokens)
            rests[case] = arrived.stream(
                names[case], prompts[case], stream.tokens, ticket, **asked[case], max_tokens=most
            )
    await asyncio.gather(*(each.rest() for each in rests.values()))
    compute = since(before, await arrived.prompt_tokens())["local_compute"]
    await leaving.release(*(each["export_id"] for each in tickets.values()))
    await asyncio.gather(unpinned(leaving), unpinned(arrived))
    common = {"local_compute": compute, "calls": len(rests), "exact": compute == len(rests), "wave": number}
    return [_joined(case, wholes[case], streams[case], rests.get(case)) | common for case in wholes]


def _joined(case: Case, whole: Reference, stream: Stream, rest: Stream | None) -> dict:
    parts = [stream] if rest is None else [stream, rest]
    tokens = [token for part in parts for token in part.tokens]
    logprobs = [each for part in parts for each in part.logprobs]
    wanted = whole.said[0].logprobs[: len(tokens)]
    near = "logprobs" not in KINDS[case.sampling].sampling or logprobs == pytest.approx(wanted, abs=1e-3)
    return {
        "case": case, "equal": tokens == whole.tokens[0][: len(tokens)] and near, "copies": 0,
        "how": ["finished" if rest is None else "carried"], "tokens": len(tokens), "cut": len(stream.tokens),
        "gap": whole.gap, "rejected": whole.rejected,
    }  # fmt: skip
