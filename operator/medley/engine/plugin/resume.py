"""Exact resume: tokens that another engine produced come back as this request's *output* tokens.

Installed by the plugin; see wire/resume.py for the message. Four places must agree on them: the scheduler's request
(max_tokens, min_tokens), the model runner's copy (penalties), the grammar, and the seeded generator. What cannot be
resumed never comes here: resume_check.py refuses it in the API server.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Final, Self

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from medley.wire.resume import RESUME_OUTPUT_TOKEN_IDS

_INSTALLED: Final = "_medley_resume"


def install() -> None:
    """Patch this process's vLLM, once."""
    if is_installed():
        return
    Request.from_engine_core_request = classmethod(_resuming(Request.from_engine_core_request.__func__))
    CachedRequestState.__post_init__ = _recalling(CachedRequestState.__post_init__)
    StructuredOutputManager._create_grammar = _replaying(StructuredOutputManager._create_grammar)  # noqa: SLF001 - the only place
    setattr(Request, _INSTALLED, True)


def is_installed() -> bool:
    """Whether this process's vLLM takes tokens back as outputs."""
    return bool(getattr(Request, _INSTALLED, False))


def committed_ids(params: Any) -> list[int]:
    """Return the output tokens that a request brings along; empty for an ordinary request."""
    extra = params.extra_args if isinstance(params, SamplingParams) else None
    return (extra or {}).get(RESUME_OUTPUT_TOKEN_IDS) or []


def _resuming(original: Any) -> Any:
    @wraps(original)
    def from_engine_core_request(cls: type[Request], request: Any, block_hasher: Any = None) -> Request:
        made = original(cls, request, block_hasher)
        if committed := committed_ids(made.sampling_params):
            made.append_output_token_ids(list(committed))
            made.prefill_stats = None  # they describe prompts, and assume that nothing was generated before
        return made

    return from_engine_core_request


def _recalling(original: Any) -> Any:
    @wraps(original)
    def __post_init__(self: CachedRequestState) -> None:  # noqa: N807 - it replaces the dataclass's own
        original(self)
        if (committed := committed_ids(self.sampling_params)) and not self.output_token_ids:
            self.output_token_ids.extend(committed)
        if self.generator is not None:
            self.generator = ReplayedGenerator(self)

    return __post_init__


def _replaying(original: Any) -> Any:
    @wraps(original)
    def _create_grammar(self: StructuredOutputManager, request: Request) -> Any:
        grammar = original(self, request)
        committed = committed_ids(request.sampling_params)
        if committed and not grammar.accept_tokens(request.request_id, list(committed)):
            raise ValueError(f"{RESUME_OUTPUT_TOKEN_IDS}: the request's grammar does not accept them")
        return grammar

    return _create_grammar


class ReplayedGenerator(torch.Generator):
    """A request's seeded generator on the CPU, standing where its output tokens have taken it.

    vLLM's sampler draws once per token from it. When vLLM drops a token that it sampled in the middle of a prefill, it
    winds the generator back by its offset; a CPU generator has none, and the exception would end the engine. So winding
    back means: from the seed, one draw for each output token that there is.
    """

    def __new__(cls, state: CachedRequestState) -> Self:  # noqa: ARG004 - torch.Generator's own takes a device
        """Make a generator of the CPU."""
        return super().__new__(cls, device="cpu")

    def __init__(self, state: CachedRequestState) -> None:
        self._state = state
        self._replay()

    def get_offset(self) -> int:
        """Return 0: only `set_offset` means something here."""
        return 0

    def set_offset(self, offset: int) -> None:  # noqa: ARG002 - torch's signature
        """Take back the last draw, whose token was dropped."""
        self._replay()

    def _replay(self) -> None:
        self.manual_seed(self._state.sampling_params.seed)
        for _ in self._state.output_token_ids:
            torch.randint(0, 2**31, (1,), generator=self, dtype=torch.long)  # as TopKTopPSampler.forward_cpu draws
