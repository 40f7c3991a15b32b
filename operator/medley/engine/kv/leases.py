"""What an engine has promised to keep: exports, the blocks each holds, and until when; no vLLM, no clock.

`utilities` and the connector change the table between engine steps, in the engine's main thread. The pin server asks
`holds` from its own. An export leaves the table before its blocks are given back; so "held" after a read means that
the blocks were not reused during it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Export:
    """Blocks that are pinned once for this export."""

    blocks: tuple[int, ...]
    ends_at: float  # seconds of the clock that its owner uses


class Leases:
    """The table. Every method gets the time; blocks that it returns are to be given back by the caller."""

    def __init__(self) -> None:
        self._exports: dict[str, Export] = {}

    def __len__(self) -> int:
        return len(self._exports)

    def add(self, export_id: str, export: Export) -> None:
        """Remember a new export."""
        assert export_id not in self._exports, "export ids are random"
        self._exports[export_id] = export

    def holds(self, export_id: str) -> bool:
        """Whether an export's blocks are pinned. Safe from other threads."""
        return export_id in self._exports

    def renew(self, export_ids: Iterable[str], ends_at: float, now: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Let exports live until `ends_at`; return those that were there, and those that were not."""
        there, gone = self._sort(export_ids, now)
        for each in there:
            self._exports[each] = Export(self._exports[each].blocks, ends_at)
        return there, gone

    def release(
        self, export_ids: Iterable[str], now: float
    ) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[int, ...], ...]]:
        """Forget exports; return those that were there, those that were not, and the blocks of the former."""
        there, gone = self._sort(export_ids, now)
        return there, gone, tuple(self._exports.pop(each).blocks for each in there)

    def expire(self, now: float) -> tuple[tuple[int, ...], ...]:
        """Forget exports whose time is over; return their blocks."""
        over = [export_id for export_id, export in self._exports.items() if export.ends_at <= now]
        return tuple(self._exports.pop(each).blocks for each in over)

    def next_end(self) -> float | None:
        """Return when the next export ends, or None."""
        return min((export.ends_at for export in self._exports.values()), default=None)

    def pinned(self) -> int:
        """Return how many different blocks are held."""
        return len({block for export in self._exports.values() for block in export.blocks})

    def _sort(self, export_ids: Iterable[str], now: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        asked = tuple(dict.fromkeys(export_ids))
        there = tuple(each for each in asked if each in self._exports and self._exports[each].ends_at > now)
        return there, tuple(each for each in asked if each not in there)
