"""What nodes cost, with date and source, from wherever it is known; called by `medley plan`.

    source: PriceSource = price_files.opened(path)          # nothing here fetches anything
    found = applied(classes, source.prices())               # classes at these prices, and what was used

A catalogue says what may be bought; prices change what it costs, and never what there is: a price of a market or zone
that the catalogue does not offer is passed over, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from medley.core.accelerators import AcceleratorClass, KarpenterNodes, Market, NodeOffer

STALE_AFTER = timedelta(days=30)
# What a zone's name has beyond its region's: us-east-1 + a, us-east1 + -b, eastus + -1.
_ZONE_SUFFIX = re.compile(r"-?[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Price:
    """What one node costs: of a class by name, or of an instance type; in one zone, in a region, or anywhere."""

    market: Market
    usd_per_node_hour: float
    known_at: datetime  # when it was known to hold
    source: str  # what a person can look up
    accelerator_class: str = ""
    instance_type: str = ""
    zone: str = ""
    region: str = ""

    def is_of(self, each: AcceleratorClass, offer: NodeOffer) -> bool:
        """Say whether this is a price of an offer of a class."""
        return self.market is offer.market and self._names(each) and self._holds_in(offer.zone)

    @property
    def precision(self) -> tuple[bool, bool, bool]:
        """Of two prices of one source that name the same offer, the more precise one counts."""
        return bool(self.accelerator_class), bool(self.zone), bool(self.region)

    def _names(self, each: AcceleratorClass) -> bool:
        if self.accelerator_class:
            return self.accelerator_class == each.name
        return isinstance(each.nodes, KarpenterNodes) and self.instance_type in each.nodes.instance_types

    def _holds_in(self, zone: str) -> bool:
        if self.zone:
            return self.zone == zone
        beyond = zone.removeprefix(self.region)
        return not self.region or (beyond != zone and _ZONE_SUFFIX.fullmatch(beyond) is not None)


class PriceSource(Protocol):
    """Where prices come from: a file, or another service that somebody writes."""

    def prices(self) -> tuple[Price, ...]:
        """Return every price that is known. Raises InvalidInputError with place and remedy."""
        ...


@dataclass(frozen=True, slots=True)
class Repriced:
    """A price of the catalogue that another took the place of."""

    accelerator_class: str
    market: Market
    zone: str
    before_usd_per_node_hour: float
    price: Price


@dataclass(frozen=True, slots=True)
class Applied:
    """A catalogue at other prices."""

    classes: tuple[AcceleratorClass, ...]
    repriced: tuple[Repriced, ...]
    kept: tuple[tuple[str, NodeOffer], ...]  # class and offer that no price names: they cost what the catalogue says
    passed_over: int  # prices that name nothing in the catalogue, or less precisely than another


def applied(classes: Iterable[AcceleratorClass], sources: Sequence[Sequence[Price]]) -> Applied:
    """Return the classes at these prices; a later source wins over an earlier one.

    Where several instance types of a class have a price, the cheapest counts: that is the one that Karpenter buys.
    """
    repriced: list[Repriced] = []
    kept: list[tuple[str, NodeOffer]] = []
    changed: list[AcceleratorClass] = []
    for each in classes:
        offers: list[NodeOffer] = []
        for offer in each.offers:
            price = _price(each, offer, sources)
            if price is None:
                kept.append((each.name, offer))
                offers.append(offer)
                continue
            repriced.append(Repriced(each.name, offer.market, offer.zone, offer.usd_per_node_hour, price))
            offers.append(replace(offer, usd_per_node_hour=price.usd_per_node_hour))
        changed.append(replace(each, offers=tuple(offers)))
    used = {id(each.price) for each in repriced}
    total = sum(len(source) for source in sources)
    return Applied(tuple(changed), tuple(repriced), tuple(kept), total - len(used))


def stale(repriced: Iterable[Repriced], now: datetime, after: timedelta = STALE_AFTER) -> tuple[Repriced, ...]:
    """Return those whose price was last known to hold longer ago than `after`."""
    return tuple(each for each in repriced if now - each.price.known_at > after)


def _price(each: AcceleratorClass, offer: NodeOffer, sources: Sequence[Sequence[Price]]) -> Price | None:
    for source in reversed(sources):
        of_offer = [price for price in source if price.is_of(each, offer)]
        if of_offer:
            best = max(price.precision for price in of_offer)
            return min(
                (price for price in of_offer if price.precision == best),
                key=lambda price: (price.usd_per_node_hour, price.instance_type),
            )
    return None
