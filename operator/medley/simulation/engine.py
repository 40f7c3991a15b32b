"""One engine, step by step: continuous batching, chunked prefill, KV memory in blocks, preemption by recompute.

Driven by `fleet`. It follows vLLM's V1 scheduler (docs/simulation.md says what it leaves out):

* A step holds one token of every decoding sequence, then chunks of prompts, first come first served, until
  max_batched_tokens are used. The step that ends a prompt yields the request's first token.
* A request starts when a slot is free and its whole prompt fits the free blocks; nobody overtakes.
* A decoding sequence that needs a block when none is free preempts the one that started last, which goes back to the
  head of the queue and recomputes its prompt and what it had generated.

Between events (a request comes, a sequence ends, memory runs out) all steps are alike but for contexts that grow by
one token each, so any number of them is summed in closed form: the cost is per event, not per token.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel

BLOCK_TOKENS = 16  # vLLM's default
_NOTHING: list[int] = []


@dataclass(slots=True)
class Ledger:
    """What all engines of a run write down, by request number; NaN: not yet."""

    input_tokens: list[int]
    output_tokens: list[int]
    first_token_s: list[float] = field(init=False)
    last_token_s: list[float] = field(init=False)
    generated: list[int] = field(init=False)  # when it was last preempted
    preemptions: int = 0

    def __post_init__(self) -> None:
        number = len(self.input_tokens)
        self.first_token_s = [math.nan] * number
        self.last_token_s = [math.nan] * number
        self.generated = [0] * number


class Engine:
    """One replica. `boundary_s` is when its present steps end (infinity: idle); whoever drives it calls `advance` then.

    Requests that can never fit raise InvalidInputError in `submit`.
    """

    __slots__ = (
        "_block",
        "_blocks",
        "_context",
        "_crossing",
        "_decoding",
        "_ends",
        "_free",
        "_ledger",
        "_model",
        "_now",
        "_prefilled",
        "_prompts",
        "_running",
        "_serial",
        "_start",
        "_steps",
        "_tick",
        "_waiting",
        "boundary_s",
    )

    def __init__(self, model: LatencyModel, ledger: Ledger, *, block_tokens: int = BLOCK_TOKENS) -> None:
        self._model = model
        self._ledger = ledger
        self._block = block_tokens
        self._blocks = self._free = model.kv_tokens // block_tokens
        self._now = 0.0
        self.boundary_s = math.inf
        self._steps = 0  # in the present segment: several only if they all are pure decoding
        self._prefilled = 0  # prompt tokens in the present step
        self._waiting: deque[int] = deque()
        self._prompts: deque[list[int]] = deque()  # started: [request, prompt tokens left]
        self._running: dict[int, int] = {}  # request -> serial number of its start; in order of start
        self._serial = 0
        self._tick = 0  # steps so far
        self._start: dict[int, int] = {}  # decoding request -> the tick at which it would have had no token
        self._ends: list[tuple[int, int, int]] = []  # heap: tick of the last token, serial, request
        self._decoding = 0
        self._context = 0  # tokens that the next step's decoding sequences read
        self._crossing = [0] * block_tokens  # decoding sequences by the tick (modulo) at which they need a block

    @property
    def free_blocks(self) -> int:
        """Blocks of KV memory that nobody holds."""
        return self._free

    def submit(self, request: int, at_s: float) -> None:
        """Take a request in at a time that is not before those of earlier calls."""
        most = self._ledger.input_tokens[request] + self._ledger.output_tokens[request] - 1
        if -(-most // self._block) > self._blocks:
            raise InvalidInputError(
                f"request {request}",
                f"{most} tokens of KV cache never fit a replica that holds {self._blocks * self._block}; "
                "send it to another shape or refuse it",
            )
        self._waiting.append(request)
        if self.boundary_s == math.inf:
            # An empty segment, so that all who come at this very time share the first step.
            self._now = self.boundary_s = at_s
        elif self._steps > 1 and len(self._waiting) == 1:
            # Had others been waiting, they would be blocked until a sequence ends, and so is this one.
            self._cut(at_s)

    def advance(self) -> list[int]:
        """Finish the present steps at `boundary_s` and plan the next; return the requests that ended."""
        steps, tick = self._steps, self._tick
        self._now = self.boundary_s
        if self._decoding:
            self._free -= self._needed(steps)
            self._context += self._decoding * steps
        self._tick = tick = tick + steps
        ended = self._end(tick) if self._ends and self._ends[0][0] <= tick else _NOTHING
        if self._prefilled:
            ended = self._finish_prompts(ended)
        self._plan()
        return ended

    def _needed(self, steps: int) -> int:
        """Return the blocks that the decoding sequences take in the next steps."""
        crossing, block, tick = self._crossing, self._block, self._tick
        if steps == 1:
            return crossing[tick % block]
        rounds, rest = divmod(steps, block)
        first = tick % block
        part = sum(crossing[first : first + rest]) + sum(crossing[: max(0, first + rest - block)])
        return rounds * self._decoding + part

    def _end(self, tick: int) -> list[int]:
        ledger, ended = self._ledger, []
        while self._ends and self._ends[0][0] <= tick:
            _, serial, request = heappop(self._ends)
            if self._running.get(request) == serial:
                ledger.last_token_s[request] = self._now
                self._release(request)
                ended.append(request)
        return ended

    def _release(self, request: int) -> None:
        """Take a decoding sequence out of the batch and free its blocks."""
        start = self._start.pop(request)
        tokens = self._ledger.input_tokens[request] + self._tick - start  # of its next step, had it one
        del self._running[request]
        self._decoding -= 1
        self._context -= tokens
        self._crossing[(start + 1 - self._ledger.input_tokens[request]) % self._block] -= 1
        self._free += -(-(tokens - 1) // self._block)

    def _finish_prompts(self, ended: list[int]) -> list[int]:
        ledger, left = self._ledger, self._prefilled
        self._prefilled = 0
        while left:
            prompt = self._prompts[0]
            if prompt[1] > left:
                prompt[1] -= left
                break
            left -= prompt[1]
            request = self._prompts.popleft()[0]
            done = ledger.generated[request] + 1
            if done == 1:
                ledger.first_token_s[request] = self._now
            inputs, outputs = ledger.input_tokens[request], ledger.output_tokens[request]
            start = self._tick - done
            if done == outputs:
                ledger.last_token_s[request] = self._now
                del self._running[request]
                self._free += -(-(inputs + done - 1) // self._block)
                ended = [*ended, request]
                continue
            self._start[request] = start
            self._decoding += 1
            self._context += inputs + done
            self._crossing[(start + 1 - inputs) % self._block] += 1
            heappush(self._ends, (start + outputs, self._running[request], request))
        return ended

    def _plan(self) -> None:
        """Choose what the next segment holds and when it ends."""
        model = self._model
        preempted = self._decoding > 0 and self._make_room()
        if self._waiting and not preempted:
            self._admit()
        decoding = self._decoding
        if self._prompts:
            self._prefilled = min(sum(prompt[1] for prompt in self._prompts), model.max_batched_tokens - decoding)
            self._steps = 1
            self.boundary_s = self._now + model.step(self._prefilled, decoding, self._context)
        elif decoding:
            ends = self._ends
            while self._running.get(ends[0][2]) != ends[0][1]:
                heappop(ends)
            steps = 1 if preempted else self._within_memory(ends[0][0] - self._tick)
            self._steps = steps
            self.boundary_s = self._time_after(steps)
        else:
            self._steps = 0
            self.boundary_s = math.inf

    def _make_room(self) -> bool:
        """Preempt until every decoding sequence has the block it needs for the next step; say whether any was."""
        preempted = False
        while self._crossing[self._tick % self._block] > self._free:
            request = next(reversed(self._running))
            if request in self._start:
                self._ledger.generated[request] = self._tick - self._start[request]
                self._release(request)
            else:
                self._prompts = deque(prompt for prompt in self._prompts if prompt[0] != request)
                del self._running[request]
                self._free += self._prompt_blocks(request)
            self._waiting.appendleft(request)
            self._ledger.preemptions += 1
            preempted = True
        return preempted

    def _admit(self) -> None:
        """Start waiting requests, in order, while there are slots, blocks and room in the step."""
        ledger, running, waiting = self._ledger, self._running, self._waiting
        room = self._model.max_batched_tokens - self._decoding - sum(prompt[1] for prompt in self._prompts)
        free = self._free - self._crossing[self._tick % self._block]
        while waiting and room > 0 and len(running) < self._model.max_running:
            request = waiting[0]
            blocks = self._prompt_blocks(request)
            if blocks > free:
                break
            waiting.popleft()
            free -= blocks
            self._free -= blocks
            self._serial += 1
            running[request] = self._serial
            tokens = ledger.input_tokens[request] + ledger.generated[request]
            self._prompts.append([request, tokens])
            room -= tokens

    def _prompt_blocks(self, request: int) -> int:
        return -(-(self._ledger.input_tokens[request] + self._ledger.generated[request]) // self._block)

    def _within_memory(self, steps: int) -> int:
        """Return how many of so many steps the free blocks allow; at least the next one does."""
        rounds = -(-steps // self._block)
        if self._decoding * rounds <= self._free or self._needed(steps) <= self._free:
            return steps
        free, count = self._free, 0
        whole = free // self._decoding
        if whole:
            count = whole * self._block
            free -= whole * self._decoding
        while count < steps:
            free -= self._crossing[(self._tick + count) % self._block]
            if free < 0:
                break
            count += 1
        return min(count, steps)

    def _time_after(self, steps: int) -> float:
        """Return when so many steps of pure decoding end, from now on."""
        each = self._model.step(0, self._decoding, self._context)
        growth = self._model.per_context_token_s * self._decoding
        return self._now + steps * each + growth * (steps * (steps - 1) // 2)

    def _cut(self, at_s: float) -> None:
        """End the present run of steps with the first that ends at this time or later."""
        each = self._model.step(0, self._decoding, self._context)
        growth = self._model.per_context_token_s * self._decoding
        elapsed = at_s - self._now
        # The positive root of growth/2 n^2 + (each - growth/2) n = elapsed, in the form that is exact for growth 0.
        linear = each - growth / 2
        root = 2 * elapsed / (linear + math.sqrt(linear * linear + 2 * growth * elapsed)) if elapsed > 0 else 0.0
        steps = min(max(math.ceil(root), 1), self._steps)
        while steps > 1 and self._time_after(steps - 1) >= at_s:
            steps -= 1
        while steps < self._steps and self._time_after(steps) < at_s:
            steps += 1
        self._steps = steps
        self.boundary_s = self._time_after(steps)
