"""One measured figure, as the table shows it and build/bench.json keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: what was measured, what we want, whether that is met, and beside whom.

    `name`: "area/what". `want`: None where there is no bar, only a figure. `peer`: what it is compared with, with
    that one's figure. `command`: how to measure it again.
    """

    name: str
    value: float
    unit: str
    want: str | None = None
    met: bool | None = None
    peer: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if (self.want is None) != (self.met is None):
            raise ValueError(f"{self.name}: want and met go together")
