"""Names fit Kubernetes' limits and stay apart."""

import re

from hypothesis import given
from hypothesis import strategies as st

from medley.core import names
from medley.core.accelerators import Market, OfferingKey, Shape
from medley.core.identity import Role

dns_labels = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(dns_labels)
def test_every_derived_name_is_a_dns_label(service):
    for name in (
        names.router(service),
        names.engine_key(service),
        names.node_pool(service, Market.ON_DEMAND),
        names.authorities(service),
        *(names.certificates(service, role) for role in Role),
    ):
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name), name


@given(dns_labels, dns_labels)
def test_two_services_never_share_a_router(one, other):
    assert (names.router(one) == names.router(other)) == (one == other)


def test_short_names_are_kept_and_long_ones_keep_their_head():
    assert names.shortened("chat") == "chat"
    assert names.shortened("a" * 64) == "a" * 54 + "-ffe054fe"


def test_shape_and_offering_keys():
    assert [Shape("l4").key, Shape("l4", 2).key, Shape("l4", 2, 2).key, Shape("l4", 1, 2).key] == [
        "l4",
        "l4-tp2",
        "l4-tp2-pp2",
        "l4-pp2",
    ]
    assert str(OfferingKey(Shape("l4", 2), Market.SPOT, "a")) == "l4-tp2/spot/a"


def test_only_ipv6_addresses_need_brackets_in_a_url():
    addresses = ("10.0.0.1", "fd00::1", "engine.medley")
    assert [names.url_host(each) for each in addresses] == ["10.0.0.1", "[fd00::1]", "engine.medley"]
