"""Pipeline stages on the CPU without compilation: later stages get the buffer that vLLM forgets to allocate.

Installed by the plugin. In vLLM 0.32 only the profile run allocates `intermediate_tensors`, and eager mode skips it:
the first request then dies on an assertion.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Final

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

_INSTALLED: Final = "_medley_pipeline"


def install() -> None:
    """Patch this process's vLLM, once."""
    if not getattr(CPUModelRunner, _INSTALLED, False):
        CPUModelRunner.load_model = _allocating(CPUModelRunner.load_model)
        setattr(CPUModelRunner, _INSTALLED, True)


def _allocating(original: Any) -> Any:
    @wraps(original)
    def load_model(self: CPUModelRunner, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not get_pp_group().is_first_rank and self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )

    return load_model
