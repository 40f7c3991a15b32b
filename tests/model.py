"""The model that tests serve: small, in fp32, and so chaotic that equal output means equal history."""

from medley.demo.model import ensure_model

__all__ = ["ensure_model"]
