"""Prices as clouds write them, saved to a file by a person; `opened` tells which shape a file has.

    aws ec2 describe-spot-price-history --product-descriptions Linux/UNIX ...        AwsSpotHistory
    https://prices.azure.com/api/retail/prices?$filter=...                           AzureRetailPrices
    https://cloudbilling.googleapis.com/v1/services/6F81-5844-456A/skus              GcpSkus
    {date, source, prices: [...]} in YAML                                            PriceFile

Called by `medley plan`. Nothing is fetched. Where a list does not say when it was saved, the file's own time counts as
its date. Errors name file, entry and field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import yaml

from medley.cloud.prices import Price, PriceSource
from medley.core.accelerators import Market
from medley.core.errors import InvalidInputError
from medley.core.faults import one_line

Json = Mapping[str, Any]

_LINUX = frozenset({"Linux/UNIX", "Linux/UNIX (Amazon VPC)"})
_DEAREST = 100_000.0  # USD per node-hour: beyond, a unit is wrong


def opened(path: Path) -> PriceSource:
    """Return the source that a file is. Raises InvalidInputError if it is none of those known."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        saved_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise InvalidInputError(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(str(path), f"is not text: {error}") from error
    try:
        document = _parsed(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(str(path), f"is neither JSON nor YAML: {one_line(error)}") from error
    match document:
        case {"SpotPriceHistory": list(entries)}:
            return AwsSpotHistory(str(path), entries)
        case {"Items": list(entries), "BillingCurrency": _}:
            return AzureRetailPrices(str(path), entries, saved_at)
        case {"skus": list(entries)}:
            return GcpSkus(str(path), entries, saved_at)
        case {"prices": list(entries), **rest}:
            return PriceFile(str(path), entries, {str(key): value for key, value in rest.items()})
    raise InvalidInputError(
        str(path),
        "is no price list that is known: expected SpotPriceHistory (AWS), Items (Azure retail prices), skus (Google "
        "Cloud billing catalogue), or date, source and prices (docs/tool.md)",
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        # JSON is YAML too, but parsing megabytes of it as YAML takes minutes.
        return yaml.safe_load(text)


@dataclass(frozen=True, slots=True)
class AwsSpotHistory:
    """AWS spot price changes per instance type and zone: each price holds until the next.

    `mean`: the mean over the time that the history covers instead of the last price.
    """

    name: str
    entries: list[Any]
    mean: bool = False

    def prices(self) -> tuple[Price, ...]:
        """Return one price per instance type and zone, known until the last change in the file."""
        changes: dict[tuple[str, str], list[tuple[datetime, float]]] = {}
        for number, entry in enumerate(self.entries):
            where = f"{self.name}, SpotPriceHistory[{number}]"
            if _text(entry, "ProductDescription", where) not in _LINUX:
                continue
            key = _text(entry, "InstanceType", where), _text(entry, "AvailabilityZone", where)
            moment = _moment(_field(entry, "Timestamp", where), f"{where}.Timestamp")
            changes.setdefault(key, []).append((moment, _usd(_field(entry, "SpotPrice", where), f"{where}.SpotPrice")))
        if not changes:
            raise InvalidInputError(self.name, "has no price of Linux/UNIX; ask with --product-descriptions Linux/UNIX")
        end = max(moment for each in changes.values() for moment, _ in each)
        return tuple(
            Price(
                Market.SPOT,
                _mean(sorted(each), end) if self.mean else max(each)[1],
                end,
                f"{self.name}: AWS spot, {'mean of the history' if self.mean else 'last'}",
                instance_type=kind,
                zone=zone,
            )
            for (kind, zone), each in sorted(changes.items())
        )


@dataclass(frozen=True, slots=True)
class AzureRetailPrices:
    """Azure retail prices: virtual machines with Linux, by the hour, per region."""

    name: str
    entries: list[Any]
    saved_at: datetime

    def prices(self) -> tuple[Price, ...]:
        """Return the price in force of every machine size, region and market."""
        newest: dict[tuple[str, str, Market], tuple[datetime, Price]] = {}
        for number, entry in enumerate(self.entries):
            where = f"{self.name}, Items[{number}]"
            if not _is_linux_by_the_hour(_entry(entry, where)):
                continue
            if entry.get("currencyCode") != "USD":
                raise InvalidInputError(f"{where}.currencyCode", f"expected USD, got {entry.get('currencyCode')!r}")
            since = _moment(_field(entry, "effectiveStartDate", where), f"{where}.effectiveStartDate")
            market = Market.SPOT if str(entry.get("skuName", "")).endswith(" Spot") else Market.ON_DEMAND
            key = _text(entry, "armSkuName", where), _text(entry, "armRegionName", where), market
            usd = _usd(_field(entry, "retailPrice", where), f"{where}.retailPrice")
            if since <= self.saved_at and (key not in newest or since > newest[key][0]):
                source = f"{self.name}: Azure retail"
                newest[key] = since, Price(market, usd, self.saved_at, source, instance_type=key[0], region=key[1])
        return tuple(newest[key][1] for key in sorted(newest))


def _is_linux_by_the_hour(entry: Json) -> bool:
    product, sku = str(entry.get("productName", "")), str(entry.get("skuName", ""))
    return (
        entry.get("serviceName") == "Virtual Machines"
        and entry.get("type") == "Consumption"
        and entry.get("unitOfMeasure") == "1 Hour"
        and "Windows" not in product
        and "CloudServices" not in product
        and not sku.endswith("Low Priority")
    )


@dataclass(frozen=True, slots=True)
class _Machine:
    """A Google Cloud machine type by its parts."""

    family: str
    vcpus: int
    ram_gib: int
    gpus: int
    gpu: str


def _machines() -> Iterator[tuple[str, _Machine]]:
    """Yield the machine types with GPUs built in whose price is the sum of cores, memory and GPUs.

    Source: cloud.google.com/compute/docs/gpus. Local SSD that comes with some is a part of its own and not counted.
    """
    for vcpus, gpus in ((4, 1), (8, 1), (12, 1), (16, 1), (24, 2), (32, 1), (48, 4), (96, 8)):
        yield f"g2-standard-{vcpus}", _Machine("G2", vcpus, 4 * vcpus, gpus, "L4")
    for gpus in (1, 2, 4, 8):
        yield f"a2-highgpu-{gpus}g", _Machine("A2", 12 * gpus, 85 * gpus, gpus, "Tesla A100")
        yield f"a2-ultragpu-{gpus}g", _Machine("A2", 12 * gpus, 170 * gpus, gpus, "Tesla A100 80GB")
        yield f"a3-highgpu-{gpus}g", _Machine("A3", 26 * gpus, 234 * gpus, gpus, "H100 80GB")


_MACHINES = dict(_machines())
_PART = re.compile(
    r"(?:Spot Preemptible )?(?P<family>G2|A2|A3) Instance (?P<part>Core|Ram) running in .*"
    r"|Nvidia (?P<gpu>L4|Tesla A100|Tesla A100 80GB|H100 80GB) GPU "
    r"(?:attached to Spot Preemptible VMs )?running in .*"
)
_USAGE = {"OnDemand": Market.ON_DEMAND, "Preemptible": Market.SPOT}


@dataclass(frozen=True, slots=True)
class GcpSkus:
    """Google Cloud's billing catalogue, which prices cores, memory and GPUs apart, per region."""

    name: str
    entries: list[Any]
    saved_at: datetime

    def prices(self) -> tuple[Price, ...]:
        """Return the price of every machine type of which all parts are priced."""
        parts: dict[tuple[Market, str], dict[str, float]] = {}
        for number, entry in enumerate(self.entries):
            where = f"{self.name}, skus[{number}]"
            found = _PART.fullmatch(_text(entry, "description", where))
            market = _USAGE.get(_text(_field(entry, "category", where), "usageType", f"{where}.category"))
            if found is None or market is None:
                continue
            part = found["gpu"] or f"{found['family']} {found['part']}"
            usd = _gcp_usd(entry, where)
            regions = _field(entry, "serviceRegions", where)
            for region in regions if isinstance(regions, list) else ():
                parts.setdefault((market, str(region)), {})[part] = usd
        return tuple(
            Price(market, sum_of_parts, self.saved_at, f"{self.name}: Google Cloud", instance_type=kind, region=region)
            for (market, region), usd_of in sorted(parts.items())
            for kind, machine in _MACHINES.items()
            if (sum_of_parts := _sum_of_parts(machine, usd_of)) is not None
        )


def _sum_of_parts(machine: _Machine, usd_of: Mapping[str, float]) -> float | None:
    amounts = {
        f"{machine.family} Core": machine.vcpus,
        f"{machine.family} Ram": machine.ram_gib,
        machine.gpu: machine.gpus,
    }
    if amounts.keys() - usd_of.keys():
        return None
    return round(math.fsum(amount * usd_of[part] for part, amount in amounts.items()), 6)


def _gcp_usd(entry: Json, where: str) -> float:
    """Return the price of one unit and hour; Google writes whole units and billionths."""
    match entry.get("pricingInfo"):
        case [*_, {"pricingExpression": {"tieredRates": [*_, {"unitPrice": {**found}}]}}]:
            price: dict[str, Any] = {str(key): value for key, value in found.items()}
            if price.get("currencyCode") != "USD":
                raise InvalidInputError(
                    f"{where}.unitPrice.currencyCode", f"expected USD, got {price.get('currencyCode')!r}"
                )
            try:
                usd = int(price.get("units", 0)) + int(price.get("nanos", 0)) / 1e9
            except (TypeError, ValueError) as error:
                raise InvalidInputError(f"{where}.unitPrice", f"expected units and nanos, got {price}") from error
            return _usd(usd, f"{where}.unitPrice")
    raise InvalidInputError(f"{where}.pricingInfo", "has no unit price")


_KEYS = frozenset({"class", "instanceType", "market", "zone", "region", "perHour"})


@dataclass(frozen=True, slots=True)
class PriceFile:
    """Prices as a person writes them: one date and source for all, each of a class or an instance type."""

    name: str
    entries: list[Any]
    about: Json

    def prices(self) -> tuple[Price, ...]:
        """Return what is written."""
        source = _text(self.about, "source", self.name)
        known_at = _moment(_field(self.about, "date", self.name), f"{self.name}, date")
        if unknown := sorted(self.about.keys() - {"source", "date"}):
            raise InvalidInputError(
                f"{self.name}, {unknown[0]}", "there is no such field; expected date, source, prices"
            )
        return tuple(self._price(number, entry, known_at, source) for number, entry in enumerate(self.entries))

    def _price(self, number: int, entry: Any, known_at: datetime, source: str) -> Price:
        where = f"{self.name}, prices[{number}]"
        if unknown := sorted(map(str, _entry(entry, where).keys() - _KEYS)):
            raise InvalidInputError(
                f"{where}.{unknown[0]}", f"there is no such field; expected {', '.join(sorted(_KEYS))}"
            )
        if ("class" in entry) == ("instanceType" in entry):
            raise InvalidInputError(where, "name exactly one of class and instanceType")
        if "zone" in entry and "region" in entry:
            raise InvalidInputError(where, "name at most one of zone and region")
        market = _text(entry, "market", where)
        if market not in set(Market):
            raise InvalidInputError(f"{where}.market", f"expected one of {', '.join(Market)}, got {market!r}")
        return Price(
            Market(market),
            _usd(_field(entry, "perHour", where), f"{where}.perHour"),
            known_at,
            f"{self.name}: {source}",
            **{
                argument: _text(entry, key, where)
                for key, argument in (
                    ("class", "accelerator_class"),
                    ("instanceType", "instance_type"),
                    ("zone", "zone"),
                    ("region", "region"),
                )
                if key in entry
            },
        )


def _mean(changes: Iterable[tuple[datetime, float]], end: datetime) -> float:
    """Return the mean over time of prices that hold until the next; of a single moment, the last one."""
    ordered = list(changes)
    until = [moment for moment, _ in ordered[1:]] + [end]
    lasted = [(after - moment).total_seconds() for (moment, _), after in zip(ordered, until, strict=True)]
    if not sum(lasted):
        return ordered[-1][1]
    return math.fsum(usd * each for (_, usd), each in zip(ordered, lasted, strict=True)) / math.fsum(lasted)


def _entry(entry: Any, where: str) -> Json:
    if not isinstance(entry, Mapping):
        raise InvalidInputError(where, f"expected fields, got {entry!r}")
    return entry


def _field(entry: Any, key: str, where: str) -> Any:
    if _entry(entry, where).get(key) is None:
        raise InvalidInputError(f"{where}.{key}", "this field is required")
    return entry[key]


def _text(entry: Any, key: str, where: str) -> str:
    value = _field(entry, key, where)
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{where}.{key}", f"expected text, got {value!r}")
    return value


def _usd(value: Any, where: str) -> float:
    try:
        usd = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        usd = math.nan
    if not 0 < usd <= _DEAREST:  # NaN too
        raise InvalidInputError(
            where, f"expected US dollars per node-hour above 0, at most {_DEAREST:g}, got {value!r}"
        )
    return usd


def _moment(value: Any, where: str) -> datetime:
    """Return a date or time; without a zone it is UTC."""
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime.combine(value, time())
        else:
            moment = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise InvalidInputError(where, f"expected a date such as 2026-11-20, got {value!r}") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
