"""The engine's rules written as slowly as possible: one step at a time, one sequence at a time."""

from __future__ import annotations

from dataclasses import dataclass

from medley.core.latency import LatencyModel


@dataclass
class Sequence:
    request: int
    inputs: int
    outputs: int
    generated: int = 0
    prompt_left: int = 0
    tokens_held: int = 0  # in KV memory

    def blocks(self, size: int) -> int:
        return -(-self.tokens_held // size)


def stepwise(model: LatencyModel, requests: list[tuple[float, int, int]], block: int):  # noqa: C901  # an oracle is read from top to bottom
    """Return first and last token times by request, and the number of preemptions."""
    first, last, preemptions = {}, {}, 0
    total = model.kv_tokens // block
    coming = [(at, Sequence(number, i, o)) for number, (at, i, o) in enumerate(requests)]
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    now = 0.0
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0][0])
        while coming and coming[0][0] <= now:
            waiting.append(coming.pop(0)[1])
        free = total - sum(each.blocks(block) for each in running)

        def needy(running=running) -> int:
            return sum(not each.prompt_left and each.tokens_held % block == 0 for each in running)

        preempted = False
        while needy() > free:
            victim = running.pop()
            free += victim.blocks(block)
            victim.tokens_held = victim.prompt_left = 0
            waiting.insert(0, victim)
            preemptions += 1
            preempted = True
        decoding = [each for each in running if not each.prompt_left]
        budget = model.max_batched_tokens - len(decoding)
        free -= needy()
        room = budget - sum(each.prompt_left for each in running)
        while not preempted and waiting and room > 0 and len(running) < model.max_running:
            head = waiting[0]
            tokens = head.inputs + head.generated
            if -(-tokens // block) > free:
                break
            free -= -(-tokens // block)
            head.prompt_left = head.tokens_held = tokens
            room -= tokens
            running.append(waiting.pop(0))
        context = sum(each.inputs + each.generated for each in decoding)
        prompts = [each for each in running if each.prompt_left]
        chunks = []
        for each in prompts:
            chunk = min(each.prompt_left, budget)
            budget -= chunk
            chunks.append(chunk)
        now += model.step(sum(chunks), len(decoding), context)
        for each in decoding:
            each.generated += 1
            each.tokens_held += 1
        for each, chunk in zip(prompts, chunks, strict=True):
            each.prompt_left -= chunk
            if not each.prompt_left:
                each.generated += 1
                first.setdefault(each.request, now)
        for each in [each for each in running if each.generated == each.outputs and not each.prompt_left]:
            last[each.request] = now
            running.remove(each)
    return first, last, preemptions
