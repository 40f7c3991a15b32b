"""The API server's part of exact resume: a request that cannot be resumed is a 400, and never a dead engine.

Installed by the plugin; resume.py does the rest.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Final

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor

from medley.wire.resume import RESUME_OUTPUT_TOKEN_IDS

_INSTALLED: Final = "_medley_resume_check"


def install() -> None:
    """Patch this process's vLLM, once."""
    if not getattr(InputProcessor, _INSTALLED, False):
        InputProcessor.process_inputs = _checking(InputProcessor.process_inputs)
        setattr(InputProcessor, _INSTALLED, True)


def _checking(original: Any) -> Any:
    @wraps(original)
    def process_inputs(
        self: InputProcessor, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        made = original(self, request_id, prompt, params, *args, **kwargs)
        if isinstance(params, SamplingParams) and RESUME_OUTPUT_TOKEN_IDS in (params.extra_args or {}):
            prompted = made.prompt_token_ids
            reasons = self.vllm_config.structured_outputs_config.reasoning_parser
            refusal = refused(
                params,
                vocabulary=self.model_config.get_vocab_size(),
                room=self.model_config.max_model_len - len(prompted or ()),
                reasoning=bool(reasons),
            )
            if refusal or prompted is None:
                # Of vLLM's own kind: any other exception here becomes a 500 without a message.
                raise VLLMValidationError(f"{RESUME_OUTPUT_TOKEN_IDS}: {refusal or 'needs a prompt of token ids'}")
        return made

    return process_inputs


def refused(params: SamplingParams, *, vocabulary: int, room: int, reasoning: bool) -> str:
    """Return why a request cannot be resumed from the tokens it brings, or nothing."""
    committed = (params.extra_args or {})[RESUME_OUTPUT_TOKEN_IDS]
    if not isinstance(committed, list) or not all(
        type(token) is int and 0 <= token < vocabulary for token in committed
    ):
        return f"expected a list of token ids from 0 to {vocabulary - 1}"
    if params.n != 1:
        return f"expected n=1, got n={params.n}; resume each sequence by itself"
    if params.max_tokens is not None and len(committed) >= params.max_tokens:
        return f"{len(committed)} tokens are there already, of max_tokens={params.max_tokens} for the whole request"
    if len(committed) >= room:
        return f"{len(committed)} tokens do not fit: the model has room for {room} after the prompt"
    if reasoning and params.structured_outputs is not None:
        return "structured output with a reasoning parser cannot be resumed; send prompt and tokens as a new prompt"
    return ""
