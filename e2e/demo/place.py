"""Where the demo runs, as the story sees it: the stage (`on_stage`), or a cluster that is there already (`existing`).

The story (`story`, `__main__`) knows this protocol alone, so that it is the same story in both places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from e2e.demo.cluster import Cluster
from e2e.demo.routers import RouterCounts


class PlaceError(Exception):
    """The demo cannot run here; the message names what is missing and what to do about it."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One way in which an engine's node is taken away."""

    kind: str  # what the place calls it
    notice_seconds: float
    label: str  # what the table of results calls it


class Place(Protocol):
    """A cluster to tell the story on; methods are called in the order in which they stand here."""

    opening: tuple[str, str]  # a headline and a few words on it
    ending: str  # said when KEEP=1 leaves everything
    taking: str  # how nodes are taken away here, for the headline
    namespace: str
    service: str  # name of the LLMService
    model: str  # what clients write in the field `model`
    exact: bool  # whether two of its engines agree on every token of a greedy answer
    patience_seconds: float  # until the service serves: nodes boot, models load
    blows: tuple[Blow, ...]

    @property
    def cluster(self) -> Cluster:
        """The cluster, once `prepare` is through."""

    async def prepare(self) -> None:
        """Have a cluster."""

    async def install(self) -> None:
        """Have medley in it."""

    async def apply(self) -> None:
        """Say what can be bought and ask for the service."""

    async def entrance(self) -> str:
        """Return the base URL at which this machine reaches the routers."""

    async def counts(self) -> RouterCounts:
        """Return what the routers counted until now."""

    async def victim(self) -> Mapping[str, Any]:
        """Return the engine pod whose node goes next."""

    async def interrupt(self, pod: Mapping[str, Any], blow: Blow) -> float:
        """Begin to take the node of `pod` away; return when its notice was given (Unix time)."""

    async def settled(self) -> None:
        """Return once all that `interrupt` began is done."""

    def remarks(self) -> list[str]:
        """Return what a reader of the results must know of this place."""

    async def take_down(self) -> None:
        """Remove what the demo brought, whatever came before; what was there already stays."""
