"""An export's blocks are given back exactly once: by release, or when its lease ends."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from medley.engine.kv.leases import Export, Leases


def table() -> Leases:
    leases = Leases()
    leases.add("a", Export((1, 2), 10.0))
    leases.add("b", Export((2, 3), 20.0))
    return leases


def test_release_gives_back_once_and_names_what_is_not_there():
    leases = table()
    assert leases.release(["a", "x", "a"], now=5.0) == (("a",), ("x",), ((1, 2),))
    assert leases.release(["a"], now=5.0) == ((), ("a",), ())
    assert (leases.holds("a"), leases.holds("b"), len(leases), leases.pinned()) == (False, True, 1, 2)


def test_a_lease_that_is_over_cannot_be_renewed_and_its_blocks_go_with_expire():
    leases = table()
    assert leases.renew(["a", "b"], ends_at=40.0, now=10.0) == (("b",), ("a",))
    assert leases.holds("a")  # until its blocks are given back, nobody else has them
    assert leases.expire(now=10.0) == ((1, 2),)
    assert (leases.holds("a"), leases.next_end()) == (False, 40.0)
    assert leases.expire(now=39.9) == ()
    assert leases.expire(now=40.0) == ((2, 3),)
    assert leases.next_end() is None


def test_no_order_of_calls_loses_or_repeats_a_block():
    class Life(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.leases, self.now, self.made, self.references = Leases(), 0.0, 0, 0

        def give_back(self, exports):
            self.references -= sum(len(blocks) for blocks in exports)

        @rule(blocks=st.lists(st.integers(0, 9), unique=True).map(tuple), lease=st.floats(0.1, 9))
        def add(self, blocks, lease):
            self.leases.add(f"e{self.made}", Export(blocks, self.now + lease))
            self.made += 1
            self.references += len(blocks)

        @rule(names=st.lists(st.integers(0, 6).map("e{}".format)), lease=st.floats(0.1, 9))
        def renew(self, names, lease):
            there, gone = self.leases.renew(names, self.now + lease, self.now)
            assert set(there) | set(gone) == set(names)
            assert not set(there) & set(gone)

        @rule(names=st.lists(st.integers(0, 6).map("e{}".format)))
        def release(self, names):
            self.give_back(self.leases.release(names, self.now)[2])

        @rule(passed=st.floats(0, 5))
        def expire(self, passed):
            self.now += passed
            self.give_back(self.leases.expire(self.now))

        @invariant()
        def references_are_those_of_the_exports(self):
            assert self.references == sum(len(each.blocks) for each in self.leases._exports.values())

        def teardown(self):
            self.give_back(self.leases.expire(self.now + 100))
            assert (self.references, len(self.leases)) == (0, 0)

    run_state_machine_as_test(Life, settings=settings(max_examples=50))
