"""What `medley plan` and `medley explain` are asked, from files: manifests, and on top of them what was seen and costs.

In order: the catalogue's prices give way to those of `--prices` and `--spot-history`; the forecast gives way to what a
`--trace` says. Whatever took the place of something is told as a `Note`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from medley.cli import spot_traces, traces
from medley.cli.manifests import Manifests
from medley.cli.spot_traces import Losses
from medley.cloud import price_files
from medley.cloud.price_files import AwsSpotHistory
from medley.cloud.prices import Price, Repriced, applied, stale
from medley.core.accelerators import AcceleratorClass, Market
from medley.core.errors import InvalidInputError
from medley.core.profiles import ProfileSource
from medley.core.service import WorkloadSource
from medley.core.units import figure
from medley.core.workload import MELANGE_GRID
from medley.planning import arrivals
from medley.planning.arrivals import RateChoice, Traffic
from medley.planning.suspicious import suspicions

_HISTORY = re.compile(r"(?P<class>[^=/]+)(?:/(?P<zone>[^=]+))?=(?P<path>.+?)(?::(?P<unit>[a-z]+))?")


@dataclass(frozen=True, slots=True)
class Options:
    """Files beside the manifests, and how they are read."""

    trace: Path | None = None
    rate: RateChoice = RateChoice.P95
    window: timedelta = timedelta(minutes=1)
    prices: tuple[Path, ...] = ()
    spot_history: tuple[str, ...] = ()  # FILE of AWS, or CLASS[/ZONE]=FILE[:UNIT]
    stale_after: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Note:
    """What a person should know about the input; `warning`: what they should do something about."""

    text: str
    warning: bool = False


def overlaid(manifests: Manifests, options: Options, now: datetime) -> tuple[Manifests, tuple[Note, ...]]:
    """Return the manifests with what the options say in place of what they say, and what there is to know about it.

    Raises InvalidInputError with file, place and remedy.
    """
    notes: list[Note] = [*_of_profiles(manifests)]
    classes = _priced(manifests.classes, options, now, notes)
    classes = _interrupted(classes, options, notes)
    service = manifests.service
    if options.trace is not None:
        written = service.forecast.distribution
        grid = MELANGE_GRID if isinstance(written, str) else written.grid
        found = arrivals.traffic(traces.read(options.trace), grid, options.window)
        rate = found.rate(options.rate)
        notes += _told(options, found, service.forecast.requests_per_second)
        service = replace(
            service,
            forecast=arrivals.forecast(found, service.forecast.requests_per_second if rate is None else rate),
            workload_source=WorkloadSource.FORECAST,  # a trace takes the place of what routers measured, too
        )
    notes += [Note(said, warning=True) for said in suspicions(service, classes, manifests.profiles)]
    return replace(manifests, service=service, classes=classes), tuple(notes)


def _of_profiles(manifests: Manifests) -> Iterable[Note]:
    """Yield what the profiles of this model are worth."""
    names = {each.name for each in manifests.classes}
    own = [each for each in manifests.profiles if each.model == manifests.service.model]
    for each in own:
        if each.shape.accelerator_class not in names:
            yield Note(
                f"profile {each.name}: no AcceleratorClass is named {each.shape.accelerator_class}", warning=True
            )
    guessed = [each.name for each in own if each.source is ProfileSource.ESTIMATED]
    if guessed:
        yield Note(f"estimates, not measurements: {', '.join(sorted(guessed))}; measure with `medley profile measure`")


# -- prices ------------------------------------------------------------------------------------------------------------


def _priced(
    classes: tuple[AcceleratorClass, ...], options: Options, now: datetime, notes: list[Note]
) -> tuple[AcceleratorClass, ...]:
    histories = [Path(each) for each in options.spot_history if _HISTORY.fullmatch(each) is None]
    paths = (*histories, *options.prices)
    if not paths:
        return classes
    sources: list[tuple[Price, ...]] = []
    for path in paths:
        source = price_files.opened(path)
        if path in histories:
            if not isinstance(source, AwsSpotHistory):
                raise InvalidInputError(
                    "--spot-history",
                    f"{path} is not AWS spot price history; give it to --prices, or say what its nodes were, "
                    f"as in l4/us-east-1a={path}:s",
                )
            source = replace(source, mean=True)
        prices = source.prices()
        if not applied(classes, [prices]).repriced:
            raise InvalidInputError(str(path), f"prices nothing in the catalogue: {_mismatch(prices, classes)}")
        sources.append(prices)
    found = applied(classes, sources)
    notes += [Note(_repriced(each)) for each in found.repriced]
    markets = {price.market for source in sources for price in source}
    kept = ", ".join(f"{name} {offer.market} {offer.zone}" for name, offer in found.kept if offer.market in markets)
    if kept:
        notes.append(Note(f"no price is given for {kept}: they cost what the catalogue says", warning=True))
    old = stale(found.repriced, now, options.stale_after)
    for source_name, known_at in sorted({(each.price.source, each.price.known_at) for each in old}):
        notes.append(
            Note(
                f"{source_name}: prices are {(now - known_at).days} days old (of {known_at:%Y-%m-%d}); "
                f"save them again, or say --stale-after if they still hold",
                warning=True,
            )
        )
    return found.classes


def _repriced(each: Repriced) -> str:
    price, before = each.price, each.before_usd_per_node_hour
    instead = "" if price.usd_per_node_hour == before else f" instead of {before:.4g}"
    return (
        f"{each.accelerator_class} {each.market} {each.zone}: {price.usd_per_node_hour:.4g} USD per node-hour{instead} "
        f"({price.source}, {price.known_at:%Y-%m-%d})"
    )


def _mismatch(prices: Iterable[Price], classes: Iterable[AcceleratorClass]) -> str:
    named = sorted(
        {f"{p.accelerator_class or p.instance_type} {p.market} {p.zone or p.region or 'anywhere'}" for p in prices}
    )
    offered = sorted({f"{each.name} {offer.market} {offer.zone}" for each in classes for offer in each.offers})
    return (
        f"it names {_some(named)}; the catalogue offers {_some(offered)}; classes are named by instanceTypes or class"
    )


def _some(words: Sequence[str], most: int = 3) -> str:
    if not words:
        return "nothing"
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


# -- interruptions -----------------------------------------------------------------------------------------------------


def _interrupted(
    classes: tuple[AcceleratorClass, ...], options: Options, notes: list[Note]
) -> tuple[AcceleratorClass, ...]:
    for option in options.spot_history:
        named = _HISTORY.fullmatch(option)
        if named is None:
            continue
        path = Path(named["path"])
        losses = spot_traces.read(path, named["unit"])
        of = {
            (each.name, offer.zone)
            for each in classes
            for offer in each.offers
            if offer.market is Market.SPOT and each.name == named["class"] and named["zone"] in (None, offer.zone)
        }
        if not of:
            known = sorted(f"{e.name}/{o.zone}" for e in classes for o in e.offers if o.market is Market.SPOT)
            place = named["class"] + (f"/{named['zone']}" if named["zone"] else "")
            raise InvalidInputError(
                "--spot-history", f"the catalogue offers no spot of {place}; it offers {_some(known, 12)}"
            )
        classes = tuple(_with_rate(each, of, losses.per_node_hour) for each in classes)
        notes.append(Note(_lost(named["class"], named["zone"], path, losses)))
    return classes


def _lost(name: str, zone: str | None, path: Path, losses: Losses) -> str:
    low, high = losses.bounds
    return (
        f"{name} spot {zone or 'in every zone'}: one node is lost {losses.per_node_hour:.3g} times per hour "
        f"({low:.2g} to {high:.2g} at 90 %; {losses.lost} in {losses.waves} waves over {losses.node_hours:.0f} "
        f"node-hours of {path})"
    )


def _with_rate(each: AcceleratorClass, of: set[tuple[str, str]], per_node_hour: float) -> AcceleratorClass:
    return replace(
        each,
        offers=tuple(
            replace(offer, interruptions_per_node_hour=per_node_hour)
            if offer.market is Market.SPOT and (each.name, offer.zone) in of
            else offer
            for offer in each.offers
        ),
    )


# -- traffic -----------------------------------------------------------------------------------------------------------


def _told(options: Options, found: Traffic, written_rate: float) -> list[Note]:
    notes: list[Note] = []
    if found.duration is None:
        notes.append(
            Note(
                f"{options.trace}: {found.requests} requests without times: sizes are taken from it, the rate stays "
                f"the {written_rate:g} requests/s of spec.workload.requestsPerSecond",
                warning=True,
            )
        )
    else:
        rates = ", ".join(f"{choice} {figure(rate)}" for choice, rate in found.requests_per_second)
        notes.append(
            Note(
                f"{options.trace}: {found.requests:,} requests in {found.duration.total_seconds() / 60:.0f} min; "
                f"requests/s over windows of {options.window.total_seconds():g} s: {rates}; planned for: {options.rate}"
            )
        )
    if found.burstiness is not None:
        dispersion = found.burstiness.dispersion
        notes.append(
            Note(
                f"burstiness (Poisson arrivals: 1): squared variation of gaps {found.burstiness.gap_variation:.3g}"
                + (f", dispersion of counts per window {dispersion:.3g}" if dispersion is not None else "")
            )
        )
    if found.beyond:
        notes.append(
            Note(
                f"{found.beyond} requests ({found.beyond / found.requests:.1%}) are larger than the largest size of "
                "the grid and are counted there; spell out spec.workload.distribution.histogram with larger edges",
                warning=True,
            )
        )
    if found.rare:
        notes.append(Note(f"{found.rare} requests of sizes rarer than 1 in 1000 are left out of the sizes"))
    return notes
