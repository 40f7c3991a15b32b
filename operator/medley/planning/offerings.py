"""From classes and profiled shapes to what can be bought: offerings, caps, and what is out of the question.

Called by `question`. A replica's price is its part of a node's price, node price / replicas that fit one node: the
other GPUs of a node are taken to be used by other replicas (docs/allocation.md says when that is too kind). A replica
that spans several nodes has them to itself, and is lost with any of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from medley.core.accelerators import AcceleratorClass, Market, NodeOffer, Offering, OfferingKey, Shape
from medley.core.errors import UnknownClassError
from medley.core.service import SpotUse
from medley.planning.changes import USUAL_COLD_START
from medley.planning.problem import Cap


class Why(StrEnum):
    """Why offers of a class are not used."""

    NO_PROFILE = "NoProfile"
    TOO_LONG = "TooLong"  # a replica cannot hold the model's longest requests
    NODE_TOO_SMALL = "NodeTooSmall"  # a stage of the shape needs more GPUs than a node has
    SEVERAL_NODES = "SeveralNodes"  # the shape spans nodes, on which no engine runs so far
    CANNOT_SERVE = "CannotServe"  # nothing of the demand within the SLO
    NOT_ALLOWED = "NotAllowed"  # not in the zones that the service allows
    SPOT_NOT_ALLOWED = "SpotNotAllowed"  # the service allows no spot
    CAPPED = "Capped"
    UNAVAILABLE = "Unavailable"  # not to be had for now
    NOT_OFFERED = "NotOffered"  # the class names no price
    DEARER = "Dearer"
    NOT_NEEDED = "NotNeeded"  # would not be used even for nothing


@dataclass(frozen=True, slots=True)
class OutOfQuestion:
    """Offers of a class that no plan may use, and why; shape, market and zone None: all of them."""

    accelerator_class: str
    why: Why
    message: str
    shape: Shape | None = None
    market: Market | None = None
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class OnOffer:
    """What can be bought, what offerings share, and what is out of the question."""

    offerings: tuple[Offering, ...]
    caps: tuple[Cap, ...]
    out_of_question: tuple[OutOfQuestion, ...]


def chosen_classes(classes: Iterable[AcceleratorClass], names: Collection[str]) -> tuple[AcceleratorClass, ...]:
    """Return the classes that a service may use, by name; no names: all. Raises UnknownClassError."""
    catalogue = {each.name: each for each in classes}
    unknown = sorted(set(names) - catalogue.keys())
    if unknown:
        known = ", ".join(sorted(catalogue)) or "none"
        raise UnknownClassError(
            "spec.accelerators.classes", f"no AcceleratorClass named {', '.join(unknown)}; there are: {known}"
        )
    return tuple(catalogue[name] for name in sorted(names or catalogue))


def usd_per_replica_hour(classes: Iterable[AcceleratorClass], key: OfferingKey) -> float | None:
    """Return the price of one replica of an offering, or None where no class names one."""
    for each in classes:
        for offer in each.offers if each.name == key.shape.accelerator_class else ():
            nodes = each.nodes_of(key.shape)
            if (offer.market, offer.zone) == (key.market, key.zone) and nodes is not None:
                return _usd_per_hour(offer, nodes)
    return None


def _usd_per_hour(offer: NodeOffer, nodes: Fraction) -> float:
    return offer.usd_per_node_hour * nodes.numerator / nodes.denominator


def on_several_nodes(shape: Shape, nodes: Fraction) -> str:
    """Say of a shape that spans several nodes that no engine runs on it so far."""
    return f"{shape} needs {nodes} nodes; engines run on one node so far"


def on_offer(
    classes: Iterable[AcceleratorClass],
    shapes: Iterable[Shape],
    *,
    zones: Collection[str],
    spot: SpotUse,
    withheld: Iterable[tuple[OfferingKey, int, str]] = (),
) -> OnOffer:
    """Return the offerings of these shapes.

    `zones`: those that may be used; empty: all. `withheld`: offerings of which there is no more to be had for now than
    the given replicas, and why.
    """
    shapes = sorted(shapes)
    at_most = {key: (count, why) for key, count, why in withheld}
    offerings: list[Offering] = []
    caps: list[Cap] = []
    held: dict[tuple[str, Market], list[tuple[OfferingKey, float]]] = {}  # GPUs of a replica's part of its nodes
    out: list[OutOfQuestion] = []
    for each in classes:
        fitting = [
            (shape, nodes)
            for shape in shapes
            if shape.accelerator_class == each.name and (nodes := each.nodes_of(shape)) is not None
        ]
        for offer in sorted(each.offers, key=lambda offer: (offer.market, offer.zone)):
            refusal = _refusal(offer, zones, spot)
            if refusal is not None:
                out.append(OutOfQuestion(each.name, *refusal, market=offer.market, zone=offer.zone))
                continue
            uses: list[tuple[OfferingKey, float]] = []
            for shape, nodes in fitting:
                key = OfferingKey(shape, offer.market, offer.zone)
                count, why = at_most.get(key, (None, ""))
                if count is not None:
                    message = f"not to be had for now: {why}"
                    out.append(OutOfQuestion(each.name, Why.UNAVAILABLE, message, shape, offer.market, offer.zone))
                offerings.append(
                    Offering(
                        key,
                        _usd_per_hour(offer, nodes),
                        count,
                        # Each of its nodes may be the one that goes; were they lost together, it would be less.
                        offer.interruptions_per_node_hour * max(int(nodes), 1),
                        USUAL_COLD_START,
                    )
                )
                uses.append((key, float(nodes)))
                held.setdefault((each.name, offer.market), []).append((key, float(each.gpus_per_node * nodes)))
            if offer.max_nodes is not None and uses:
                caps.append(Cap(f"nodes of {each.name}, {offer.market}, {offer.zone}", offer.max_nodes, tuple(uses)))
        for market, quota in each.gpu_quotas:
            if gpus := held.get((each.name, market)):
                caps.append(Cap(f"GPUs of {each.name}, {market}", quota, tuple(gpus)))
    return OnOffer(tuple(offerings), tuple(caps), tuple(out))


def _refusal(offer: NodeOffer, zones: Collection[str], spot: SpotUse) -> tuple[Why, str] | None:
    if zones and offer.zone not in zones:
        return Why.NOT_ALLOWED, "not among spec.accelerators.zones"
    if offer.market is Market.SPOT and spot is SpotUse.NEVER:
        return Why.SPOT_NOT_ALLOWED, "spec.spot.policy is Never"
    if offer.max_nodes == 0:
        return Why.CAPPED, "capped at 0 nodes in the AcceleratorClass"
    return None
