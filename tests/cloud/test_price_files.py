"""Price lists as clouds write them: what is read out of each, and what is wrong is named by file, entry and field."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.cloud.price_files import AwsSpotHistory, opened
from medley.core.accelerators import Market
from medley.core.errors import InvalidInputError

SAVED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def aws(usd: str, at: str, *, kind: str = "g6.xlarge", zone: str = "us-east-1a", product: str = "Linux/UNIX"):
    return {
        "InstanceType": kind,
        "AvailabilityZone": zone,
        "ProductDescription": product,
        "SpotPrice": usd,
        "Timestamp": at,
    }


def azure(usd: float, **changes):
    return {
        "currencyCode": "USD",
        "retailPrice": usd,
        "armRegionName": "eastus",
        "armSkuName": "Standard_NC24ads_A100_v4",
        "effectiveStartDate": "2026-01-01T00:00:00Z",
        "productName": "Virtual Machines NCadsA100v4 Series",
        "skuName": "NC24ads A100 v4",
        "serviceName": "Virtual Machines",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        **changes,
    }


def gcp(description: str, nanos: int, usage: str = "OnDemand", units: str = "0"):
    unit_price = {"currencyCode": "USD", "units": units, "nanos": nanos}
    return {
        "description": description,
        "category": {"usageType": usage},
        "serviceRegions": ["us-east1"],
        "pricingInfo": [{"pricingExpression": {"tieredRates": [{"startUsageAmount": 0, "unitPrice": unit_price}]}}],
    }


def written(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "prices.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    os.utime(path, (SAVED.timestamp(), SAVED.timestamp()))
    return path


def read(tmp_path: Path, document: object):
    """Return (name, market, place, price, date) of every price."""
    return [
        (
            p.instance_type or p.accelerator_class,
            p.market.value,
            p.zone or p.region,
            round(p.usd_per_node_hour, 6),
            f"{p.known_at:%Y-%m-%d}",
        )
        for p in opened(written(tmp_path, document)).prices()
    ]


HISTORY = {
    "SpotPriceHistory": [
        aws("0.30", "2026-11-18T00:00:00+00:00"),
        aws("0.40", "2026-11-17T00:00:00+00:00"),
        aws("0.50", "2026-11-18T12:00:00+00:00", zone="us-east-1b"),
        aws("9.99", "2026-11-18T12:00:00+00:00", product="Windows"),
        aws("2.75", "2026-11-19T00:00:00Z", kind="p5.4xlarge"),
    ]
}


def test_aws_spot_history_has_the_last_price_of_each_type_and_zone(tmp_path):
    assert read(tmp_path, HISTORY) == [
        ("g6.xlarge", "spot", "us-east-1a", 0.3, "2026-11-19"),
        ("g6.xlarge", "spot", "us-east-1b", 0.5, "2026-11-19"),
        ("p5.4xlarge", "spot", "us-east-1a", 2.75, "2026-11-19"),
    ]


def test_aws_spot_history_has_the_mean_over_time_too(tmp_path):
    source = opened(written(tmp_path, HISTORY))
    mean = AwsSpotHistory(source.name, source.entries, mean=True).prices()
    # A day at 0.40, a day at 0.30; the last change of all ends the history.
    assert [each.usd_per_node_hour for each in mean] == [pytest.approx(0.35), 0.5, 2.75]


def test_azure_counts_linux_by_the_hour_at_the_price_in_force(tmp_path):
    items = [
        azure(3.67),
        azure(3.00, effectiveStartDate="2025-01-01T00:00:00Z"),
        azure(9.00, effectiveStartDate="2027-01-01T00:00:00Z"),
        azure(1.47, skuName="NC24ads A100 v4 Spot"),
        azure(0.99, skuName="NC24ads A100 v4 Low Priority"),
        azure(5.00, productName="Virtual Machines NCadsA100v4 Series Windows"),
        azure(20_000.0, type="Reservation"),
        azure(0.1, serviceName="Storage"),
    ]
    assert read(tmp_path, {"BillingCurrency": "USD", "Items": items, "NextPageLink": None}) == [
        ("Standard_NC24ads_A100_v4", "on-demand", "eastus", 3.67, "2026-11-20"),
        ("Standard_NC24ads_A100_v4", "spot", "eastus", 1.47, "2026-11-20"),
    ]


def test_google_prices_are_sums_of_parts(tmp_path):
    skus = [
        gcp("G2 Instance Core running in Virginia", 25_000_000),
        gcp("G2 Instance Ram running in Virginia", 3_000_000),
        gcp("Nvidia L4 GPU running in Virginia", 560_000_000),
        gcp("Nvidia L4 GPU attached to Spot Preemptible VMs running in Virginia", 220_000_000, "Preemptible"),
        gcp("Commitment v1: Nvidia L4 GPU running in Virginia for 1 Year", 1_000_000, "Commit1Yr"),
        gcp("Network Internet Egress", 1_000_000),
    ]
    found = {name: usd for name, _, _, usd, _ in read(tmp_path, {"skus": skus})}
    assert found == {
        f"g2-standard-{cores}": pytest.approx(cores * 0.025 + 4 * cores * 0.003 + gpus * 0.56)
        for cores, gpus in ((4, 1), (8, 1), (12, 1), (16, 1), (24, 2), (32, 1), (48, 4), (96, 8))
    }  # spot has no price of cores and memory, so none of its machines has


def test_prices_as_a_person_writes_them(tmp_path):
    text = """
        date: 2026-11-01
        source: our contract
        prices:
        - {class: l4, market: spot, zone: us-east-1a, perHour: "0.31"}
        - {instanceType: g6.xlarge, market: on-demand, region: us-east-1, perHour: 0.8}
        - {class: h100, market: reserved, perHour: "4"}
    """
    assert read(tmp_path, text) == [
        ("l4", "spot", "us-east-1a", 0.31, "2026-11-01"),
        ("g6.xlarge", "on-demand", "us-east-1", 0.8, "2026-11-01"),
        ("h100", "reserved", "", 4.0, "2026-11-01"),
    ]
    assert opened(written(tmp_path, text)).prices()[0].source.endswith("prices.json: our contract")


def plain(**changes):
    about = {"date": "2026-11-01", "source": "us"}
    return {**about, "prices": [{"class": "l4", "market": "spot", "perHour": "0.3", **changes}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param({"a": 1}, "is no price list that is known: expected SpotPriceHistory (AWS)", id="unknown"),
        pytest.param("{", "is neither JSON nor YAML", id="broken JSON"),
        pytest.param("a: [", "is neither JSON nor YAML", id="broken YAML"),
        pytest.param("", "is no price list that is known", id="empty"),
        pytest.param({"SpotPriceHistory": []}, "has no price of Linux/UNIX", id="no entries"),
        pytest.param({"SpotPriceHistory": [3]}, "SpotPriceHistory[0]: expected fields, got 3", id="not an object"),
        pytest.param({"SpotPriceHistory": [{"SpotPrice": "1"}]}, "SpotPriceHistory[0].ProductDescription: this field is required", id="missing"),
        pytest.param({"SpotPriceHistory": [aws("nan", "2026-11-18")]}, "SpotPriceHistory[0].SpotPrice: expected US dollars", id="NaN"),
        pytest.param({"SpotPriceHistory": [aws("0", "2026-11-18")]}, "expected US dollars per node-hour above 0", id="zero"),
        pytest.param({"SpotPriceHistory": [aws("1", "last week")]}, "SpotPriceHistory[0].Timestamp: expected a date", id="no date"),
        pytest.param({"BillingCurrency": "EUR", "Items": [azure(3, currencyCode="EUR")]}, "Items[0].currencyCode: expected USD, got 'EUR'", id="euros"),
        pytest.param({"BillingCurrency": "USD", "Items": [azure(-3)]}, "Items[0].retailPrice: expected US dollars", id="negative"),
        pytest.param({"skus": [{}]}, "skus[0].description: this field is required", id="no description"),
        pytest.param({"skus": [gcp("Nvidia L4 GPU running in Virginia", "x")]}, "skus[0].unitPrice: expected units and nanos", id="a word for nanos"),
        pytest.param({"skus": [{**gcp("Nvidia L4 GPU running in Virginia", 1), "pricingInfo": []}]}, "skus[0].pricingInfo: has no unit price", id="no price"),
        pytest.param({"prices": []}, "source: this field is required", id="no source"),
        pytest.param({"source": "us", "prices": []}, "date: this field is required", id="no date of all"),
        pytest.param({**plain(), "colour": 1}, "colour: there is no such field", id="another field"),
        pytest.param(plain(perHour="0.3 USD"), "prices[0].perHour: expected US dollars per node-hour above 0", id="with a unit"),
        pytest.param(plain(perHour=True), "prices[0].perHour: expected US dollars", id="a truth value"),
        pytest.param(plain(perHours="1"), "prices[0].perHours: there is no such field", id="a typo"),
        pytest.param(plain(market="Spot"), "prices[0].market: expected one of spot, on-demand, reserved, got 'Spot'", id="market"),
        pytest.param(plain(instanceType="g6"), "prices[0]: name exactly one of class and instanceType", id="two names"),
        pytest.param(plain(zone="a", region="b"), "prices[0]: name at most one of zone and region", id="two places"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_entry_and_field(tmp_path, document, message):
    with pytest.raises(InvalidInputError) as refused:
        opened(written(tmp_path, document)).prices()
    assert message in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        opened(tmp_path / "none.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = ["SpotPriceHistory", "Items", "skus", "prices"]


def _spoilt(entry: dict[str, object]) -> st.SearchStrategy[dict[str, object]]:
    """Draw an entry with one of its fields replaced by any JSON."""
    return st.tuples(st.sampled_from(sorted(entry)), _JSON).map(lambda change: {**entry, change[0]: change[1]})


_ENTRIES = st.one_of(
    _JSON,
    _spoilt(aws("1", "2026-11-18")),
    _spoilt(azure(1.0)),
    _spoilt(gcp("Nvidia L4 GPU running in Virginia", 1)),
    _spoilt(plain()["prices"][0]),
)


@given(st.sampled_from(_KEYS), st.lists(_ENTRIES, max_size=3))
def test_any_list_is_read_or_refused_by_name(tmp_path_factory, key, entries):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"date": "2026-11-01", "source": "us", "BillingCurrency": "USD", key: entries}))
    refusal = None
    try:
        found = opened(path).prices()
    except InvalidInputError as error:
        refusal = str(error)
    if refusal is None:
        assert all(0 < each.usd_per_node_hour <= 100_000 and each.market in Market for each in found)
    else:
        assert refusal.startswith(str(path))
