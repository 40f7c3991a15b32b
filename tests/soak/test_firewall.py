"""Faults between engines: the rules, what is left of them, and what a machine that cannot make them says."""

from pathlib import Path

import pytest

from e2e.soak.firewall import Firewall, closing, opening, rules
from e2e.soak.interruptions import BETWEEN_ENGINES, Fault

CHAIN = "medley-soak-of-a-test"
JUMP = ("INPUT", "-i", "lo", "-m", "comment", "--comment", CHAIN, "-j", CHAIN)
TO, OF = ("-A", CHAIN, "-p", "tcp", "-d", "127.70.8.1"), ("-A", CHAIN, "-p", "tcp", "-s", "127.70.8.1")
LIMIT = ("-m", "hashlimit", "--hashlimit-above", "100kb/s", "--hashlimit-burst", "200kb", "--hashlimit-name", CHAIN)


class Kernel:
    """Remembers commands, and refuses those with a certain word."""

    def __init__(self, unknown="nothing"):
        self.ran, self.unknown = [], unknown

    def __call__(self, command):
        self.ran.append(command)
        return f"no {self.unknown} here" if self.unknown in command else ""


@pytest.mark.parametrize(
    ("fault", "commands"),
    [
        (Fault.KV_DROP, ((*TO, "-j", "DROP"), (*OF, "-j", "DROP"))),
        (Fault.KV_HALF_OPEN, ((*OF, "-j", "DROP"),)),
        (
            Fault.KV_RESET,
            tuple(
                (*each, "--tcp-flags", "RST", "NONE", "-j", "REJECT", "--reject-with", "tcp-reset") for each in (TO, OF)
            ),
        ),
        (Fault.KV_THROTTLE, ((*OF, *LIMIT, "-j", "DROP"),)),
    ],
    ids=lambda each: each.value if isinstance(each, Fault) else "",
)
def test_a_fault_is_about_one_address_and_in_one_chain(fault, commands):
    assert rules(CHAIN, fault, "127.70.8.1") == commands


def test_a_chain_comes_and_goes_by_its_own_name():
    assert opening(CHAIN) == (("-N", CHAIN), ("-I", *JUMP))
    assert closing(CHAIN) == (("-D", *JUMP), ("-F", CHAIN), ("-X", CHAIN))


def test_a_fault_of_another_place_has_no_rules():
    with pytest.raises(ValueError, match="none between engines"):
        rules(CHAIN, Fault.DROP, "127.70.8.1")


def test_what_an_earlier_run_left_goes_first_and_nothing_is_left_at_the_end():
    kernel = Kernel()
    with Firewall(Path("/checkout"), kernel) as firewall:
        chain = firewall.chain
        assert kernel.ran[:5] == [*closing(chain), *opening(chain)]
        assert firewall.possible == BETWEEN_ENGINES
        kernel.ran.clear()
        firewall.make(Fault.KV_HALF_OPEN, firewall.address(1))
        firewall.mend()
        assert kernel.ran == [*rules(chain, Fault.KV_HALF_OPEN, firewall.address(1)), ("-F", chain)]
        kernel.ran.clear()
    assert kernel.ran == list(closing(chain))


@pytest.mark.parametrize(
    ("unknown", "possible"),
    [("-N", frozenset()), ("hashlimit", BETWEEN_ENGINES - {Fault.KV_THROTTLE})],
    ids=["no right to", "no such match"],
)
def test_what_a_machine_cannot_do_is_not_drawn_and_said(unknown, possible):
    with Firewall(Path("/checkout"), Kernel(unknown)) as firewall:
        assert firewall.possible == possible
        assert firewall.obstacles == dict.fromkeys(sorted(BETWEEN_ENGINES - possible), f"no {unknown} here")


def test_a_rule_that_cannot_be_made_any_more_ends_the_soak():
    kernel = Kernel()
    with Firewall(Path("/checkout"), kernel) as firewall:
        kernel.unknown = "REJECT"
        with pytest.raises(AssertionError, match=r"kv-reset.*no REJECT here"):
            firewall.make(Fault.KV_RESET, firewall.address(0))


def test_checkouts_have_chains_and_addresses_of_their_own():
    one, other = Firewall(Path("/one"), Kernel()), Firewall(Path("/other"), Kernel())
    assert one.chain != other.chain
    assert len({each.address(number) for each in (one, other) for number in range(3)}) == 6
    assert all(each.address(2).startswith("127.") and len(each.chain) <= 28 for each in (one, other))
