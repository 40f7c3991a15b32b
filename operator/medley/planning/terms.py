"""What an allocation problem is made of: what replicas sustain, what they share, which losses are survived.

Made by `question` and `offerings`; read through `problem.AllocationProblem`. Pure: knows core values only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from medley.core.accelerators import Market, Offering, OfferingKey, Shape
from medley.core.errors import InvalidInputError
from medley.core.service import Spread
from medley.core.workload import Bucket

__all__ = ["Cap", "Load", "LossScenario", "Quota", "ShapeThroughput", "Spread"]


@dataclass(frozen=True, slots=True)
class Load:
    """A resource of one replica (step time, KV memory, slots) and how much of it one request/s of a size takes.

    1 is all of it; a bucket that is absent takes nothing.
    """

    name: str
    per_request: tuple[tuple[Bucket, float], ...]

    def __post_init__(self) -> None:
        for bucket, load in self.per_request:
            if not math.isfinite(load) or load < 0:
                raise InvalidInputError(f"load {self.name}", f"expected 0 or more in bucket {bucket}, got {load}")


@dataclass(frozen=True, slots=True)
class ShapeThroughput:
    """What one replica of a shape sustains within the SLO: requests/s per bucket, had it no other traffic.

    Buckets that it cannot serve are absent: there is no rate of zero. `loads`: resources that sizes share beyond that.
    `throughput_row`: whether the sum of rate / requests_per_second bounds a replica, as in Mélange. A mixture model
    leaves it out: 1 / requests_per_second is the dearest of its own rows for each size, so the sum would hide them.
    """

    shape: Shape
    requests_per_second: tuple[tuple[Bucket, float], ...]
    loads: tuple[Load, ...] = ()
    throughput_row: bool = True

    def __post_init__(self) -> None:
        for bucket, rate in self.requests_per_second:
            if not math.isfinite(rate) or rate <= 0:
                raise InvalidInputError(
                    f"profile of {self.shape}", f"expected positive requests/s in bucket {bucket}, got {rate}"
                )
        if not (self.throughput_row or self.loads):
            raise InvalidInputError(
                f"profile of {self.shape}", "nothing bounds a replica; keep throughput_row or give loads"
            )
        if len({bucket for bucket, _ in self.requests_per_second}) != len(self.requests_per_second):
            raise InvalidInputError(f"profile of {self.shape}", "a bucket is named twice; keep one")


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `at_most` of something that several offerings share, such as the nodes of a class in a market and zone.

    `uses` says how much of it one replica of an offering takes (a replica on half of a node's GPUs: 0.5). Nodes and
    GPUs are taken by whoever buys them. What is `drawn` on (a Budget, of which a replica takes its price) is taken by
    those services alone whose own problem has a cap of this name.
    """

    name: str  # what a person calls it: "nodes of l4, spot, zone-a"
    at_most: float
    uses: tuple[tuple[OfferingKey, float], ...]
    shared: bool = True  # by all services; False: it bounds one service alone
    drawn: bool = False  # by services that say so, in USD per hour

    def __post_init__(self) -> None:
        if not math.isfinite(self.at_most) or self.at_most < 0:
            raise InvalidInputError(self.name, f"expected a cap of 0 or more, got {self.at_most}")
        for key, use in self.uses:
            if not math.isfinite(use) or use <= 0:
                raise InvalidInputError(self.name, f"expected a positive use by {key}, got {use}")


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many GPUs of a class, a market and a zone together; None: any. `shared`: as of a cap."""

    gpus: float
    accelerator_class: str | None = None
    market: Market | None = None
    zone: str | None = None
    shared: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.gpus) or self.gpus < 0:
            raise InvalidInputError(self.name, f"expected a quota of 0 GPUs or more, got {self.gpus}")

    @property
    def name(self) -> str:
        """What a person calls it: "GPUs of l4, spot, zone-a"."""
        named = [str(part) for part in (self.accelerator_class, self.market, self.zone) if part is not None]
        what = "GPUs" if self.shared else "spec.limits.gpuQuotas"
        return f"{what} of {', '.join(named)}" if named else what

    def on(self, offerings: Iterable[Offering]) -> Cap:
        """Return the cap that it puts on these offerings."""
        return Cap(
            self.name,
            self.gpus,
            tuple(
                (offering.key, float(offering.key.shape.gpus))
                for offering in offerings
                if _matches(offering.key, self.accelerator_class, self.market, self.zone)
            ),
            self.shared,
        )


@dataclass(frozen=True, slots=True)
class LossScenario:
    """All replicas of a class, a market and a zone are gone at once; None: any.

    `survive`: the part of every bucket's demand that must still be served; None: the service's survive_zone_loss.
    """

    zone: str | None = None
    accelerator_class: str | None = None
    market: Market | None = Market.SPOT
    survive: float | None = None

    def __post_init__(self) -> None:
        if self.zone is None and self.accelerator_class is None and self.market is None:
            raise InvalidInputError("scenarios", "nothing would be left; name a zone, a class or a market")
        if self.survive is not None and not 0 <= self.survive <= 1:
            raise InvalidInputError("scenarios", f"expected to survive 0 to 1 of the demand, got {self.survive}")

    @property
    def name(self) -> str:
        """What a person calls it: "l4, spot, zone-a"."""
        return ", ".join(str(each) for each in (self.accelerator_class, self.market, self.zone) if each is not None)

    def loses(self, key: OfferingKey) -> bool:
        """Say whether an offering's replicas are gone."""
        return _matches(key, self.accelerator_class, self.market, self.zone)


def _matches(key: OfferingKey, accelerator_class: str | None, market: Market | None, zone: str | None) -> bool:
    return (
        accelerator_class in (None, key.shape.accelerator_class)
        and market in (None, key.market)
        and zone in (None, key.zone)
    )
