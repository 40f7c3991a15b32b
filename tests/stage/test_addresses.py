import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e.stage.addresses import HOST, POD_RANGE, SERVICE_RANGE, Slot, free_slot
from e2e.stage.processes import StageError

numbers = st.integers(min_value=1, max_value=250)


@given(numbers, numbers)
def test_machines_share_no_address_no_cable_and_no_pods(one: int, other: int) -> None:
    a, b = Slot(one), Slot(other)
    same = one == other
    assert (a.address == b.address) is same
    assert (a.link == b.link) is same
    assert ipaddress.ip_network(a.pods).overlaps(ipaddress.ip_network(b.pods)) is same


@given(numbers)
def test_pods_lie_in_the_pods_range_and_a_link_name_fits_the_kernel(number: int) -> None:
    slot = Slot(number)
    assert ipaddress.ip_network(slot.pods).subnet_of(ipaddress.ip_network(POD_RANGE))
    assert not ipaddress.ip_network(SERVICE_RANGE).overlaps(ipaddress.ip_network(POD_RANGE))
    assert slot.address != HOST
    assert len(slot.link) <= 15


@given(st.sets(numbers, max_size=249))
def test_the_lowest_free_slot_is_given(taken: set[int]) -> None:
    slot = free_slot(taken)
    assert slot.number == min(set(range(1, 251)) - taken)


def test_a_full_stage_says_what_to_remove() -> None:
    with pytest.raises(StageError, match=r"full: 250 machines; remove one with `python -m e2e.stage node rm NAME`"):
        free_slot(range(1, 251))
