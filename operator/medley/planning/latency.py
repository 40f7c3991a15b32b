"""The latency model under the name by which planning knows it; it lives in core, since profiles carry it."""

from __future__ import annotations

from medley.core.latency import LatencyModel

__all__ = ["LatencyModel"]
