"""What one service's pass takes of nodes that others want, hold, or will let go."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.core.accelerators import Market
from medley.planning.allocator import allocate, cheapest
from medley.planning.problem import Allocation, Cap
from medley.planning.sharing import Claim, left_for
from medley.testing.allocation import SMALL, key, offer, problem, rates

SPOT, BIG = key("l4", Market.SPOT), key("h100")
NAME = "nodes of l4, spot, zone-a"


def asks(rate: float, *, dear: float | None = 3.0, nodes: float = 4):
    offers = [offer("l4", 1.0, Market.SPOT)] + ([offer("h100", dear)] if dear else [])
    able = [rates("l4", {SMALL: 1.0}), rates("h100", {SMALL: 1.0})]
    return problem({SMALL: rate}, offers, able, caps=(Cap(NAME, nodes, ((SPOT, 1.0),)),))


def feasible(asked) -> bool:
    return cheapest(asked) is not None


def left(own: Claim, *others: Claim) -> tuple[str, float]:
    (cap,) = left_for(own, others, feasible).caps
    return cap.name, cap.at_most


def test_alone_a_service_has_all():
    own = asks(3.0)
    assert left_for(Claim("x/a", own, ()), (), feasible) == own


def test_what_nobody_else_can_use_is_not_shared():
    own = asks(3.0)
    other = problem({SMALL: 1.0}, [offer("h100", 3.0)], [rates("h100", {SMALL: 1.0})])
    assert left_for(Claim("x/a", own, ()), [Claim("x/b", other, ())], feasible) == own


def test_what_others_are_to_have_is_taken_and_named():
    first, second = Claim("x/a", asks(3.0, dear=2.0), ()), Claim("x/b", asks(3.0, dear=5.0), ())
    assert left(first, second) == (f"{NAME}, of 4 x/b takes 3", 1)
    assert left(second, first) == (f"{NAME}, of 4 x/a takes 1", 3)


def test_what_a_service_without_a_plan_holds_is_taken():
    assert left(Claim("x/a", asks(2.0), ()), Claim("x/b", None, ((SPOT, 2),))) == (f"{NAME}, of 4 x/b takes 2", 2)


def test_what_others_still_hold_is_taken_until_they_let_it_go():
    high = Claim("x/a", asks(4.0), (), priority=1)
    holds = Claim("x/b", asks(3.0, dear=None), ((SPOT, 4),))
    assert left(high, holds) == (f"{NAME}, of 4 x/b takes 4", 0)


@pytest.mark.parametrize("holder", ["x/a", "x/b"])
def test_of_equals_the_one_that_holds_replicas_keeps_them(holder):
    claims = {
        name: Claim(name, asks(3.0, dear=None), ((SPOT, 3),) if name == holder else ()) for name in ("x/a", "x/b")
    }
    other = "x/b" if holder == "x/a" else "x/a"
    assert left(claims[holder], claims[other])[1] == 3
    assert left(claims[other], claims[holder]) == (f"{NAME}, of 4 {holder} takes 3", 1)


def test_the_lower_priority_yields():
    high, low = Claim("x/a", asks(3.0, dear=None), (), 5), Claim("x/b", asks(3.0, dear=None), ((SPOT, 3),))
    assert left(low, high) == (f"{NAME}, of 4 x/a takes 3", 1)
    # It has let go of two: now the higher may have them.
    assert left(high, Claim("x/b", low.problem, ((SPOT, 1),))) == (f"{NAME}, of 4 x/b takes 1", 3)


def test_who_can_be_met_keeps_what_it_holds_until_there_is_room_elsewhere():
    """Both are to change places; were both to let go first, neither would serve."""
    able = [rates("l4", {SMALL: 1.0}), rates("h100", {SMALL: 1.0})]
    caps = (Cap(NAME, 2, ((SPOT, 1.0),)), Cap("nodes of h100", 2, ((BIG, 1.0),)))
    likes_big = problem({SMALL: 2.0}, [offer("l4", 3.0, Market.SPOT), offer("h100", 1.0)], able, caps=caps)
    likes_l4 = problem({SMALL: 2.0}, [offer("l4", 1.0, Market.SPOT), offer("h100", 3.0)], able, caps=caps)
    a, b = Claim("x/a", likes_big, ((SPOT, 2),)), Claim("x/b", likes_l4, ((BIG, 2),))
    for own, other, kept in ((a, b, SPOT), (b, a, BIG)):
        found = cheapest(left_for(own, [other], feasible))
        assert found is not None
        assert dict(found.replicas) == {kept: 2}


MONEY = "Budget team"


def money(usd: float, **prices: float) -> Cap:
    """Return a Budget; l4 (spot) costs 1.00 and h100 3.00 unless said otherwise."""
    usual = {"l4": 1.0, "h100": 3.0} | prices
    return Cap(MONEY, usd, ((BIG, usual["h100"]), (SPOT, usual["l4"])), drawn=True)


def pays(name: str, rate: float, usd: float, held=(), *, priority: int = 0, named: str = MONEY) -> Claim:
    """Return a service that draws on a Budget, on an account without any caps on nodes."""
    budget = replace(money(usd), name=named)
    return Claim(name, replace(asks(rate), caps=(budget,)), held, priority, budget)


def free(name: str, rate: float, held=()) -> Claim:
    """Return a service that buys the same and draws on no Budget."""
    return Claim(name, replace(asks(rate), caps=()), held)


def test_a_budget_is_left_to_the_next_by_what_the_first_takes_of_it():
    high, low = pays("x/a", 3.0, 4.0, priority=1), pays("x/b", 3.0, 4.0)
    assert left(high, low) == (f"{MONEY} (of 4.00 x/b takes 1.00)", 3.0)
    assert left(low, high) == (f"{MONEY} (of 4.00 x/a takes 3.00)", 1.0)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(free("x/b", 3.0, ((SPOT, 3),)), id="none"),
        pytest.param(pays("x/b", 3.0, 4.0, ((SPOT, 3),), named="Budget other"), id="another"),
    ],
)
def test_who_draws_on_no_budget_or_another_takes_nothing_of_it(other):
    own = pays("x/a", 3.0, 4.0)
    assert left_for(own, [other], feasible) == own.problem


def test_a_budget_does_not_bind_who_shares_nodes_but_not_the_money():
    nodes = Cap(NAME, 10, ((SPOT, 1.0),))
    claims = [pays("x/a", 3.0, 4.0), pays("x/b", 1.0, 4.0), free("x/c", 3.0)]
    a, b, c = (replace(each, problem=replace(each.problem, caps=(*each.problem.caps, nodes))) for each in claims)
    assert left_for(c, [a, b], feasible).caps == (Cap(f"{NAME}, of 10 x/a takes 3, x/b takes 1", 6, nodes.uses),)
    assert {cap.name: cap.at_most for cap in left_for(a, [b, c], feasible).caps} == {
        f"{MONEY} (of 4.00 x/b takes 1.00)": 3.0,
        f"{NAME}, of 10 x/b takes 1, x/c takes 3": 6,
    }


def test_what_is_held_without_a_plan_is_paid_from_the_budget():
    own, gone = pays("x/a", 3.0, 4.0), Claim("x/b", None, ((BIG, 1),), drawn=money(4.0))
    assert left(own, gone) == (f"{MONEY} (of 4.00 x/b takes 3.00)", 1.0)


def test_what_a_lower_priority_still_holds_is_not_spent_twice():
    high, low = pays("x/a", 4.0, 4.0, priority=1), pays("x/b", 3.0, 4.0, held=((SPOT, 3),))
    assert left(high, low) == (f"{MONEY} (of 4.00 x/b takes 3.00)", 1.0)
    assert left(low, high) == (f"{MONEY} (of 4.00 x/a takes 4.00)", 0.0)


def test_who_is_served_is_not_put_out_by_an_equal_that_holds_too_little():
    claims = [pays("x/a", 3.0, 4.0, ((SPOT, 1),)), pays("x/b", 1.0, 4.0), pays("x/c", 2.0, 4.0, ((SPOT, 2),))]
    a, b, c = claims
    assert left(c, a, b)[1] == 2.0
    assert left(a, b, c) == (f"{MONEY} (of 4.00 x/c takes 2.00)", 2.0)


def test_what_is_left_is_counted_in_whole_microdollars():
    own, other = (pays(name, 1.0, 1.2, held) for name, held in (("x/a", ()), ("x/b", ((SPOT, 2),))))
    thirds = replace(money(1.2), uses=((SPOT, 0.4),))
    own, other = (replace(each, drawn=thirds, problem=replace(each.problem, caps=(thirds,))) for each in (own, other))
    assert left(own, other)[1] == 0.4


@settings(max_examples=4, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 1), st.integers(0, 2)), min_size=2, max_size=3),
    st.integers(1, 6),
)
def test_passes_in_turn_never_spend_more_than_the_budget_and_come_to_rest(drawn, usd):
    """Each pass takes its service to its plan at once. Who comes first is met whenever the Budget could meet it alone."""
    held = [((SPOT, count),) if count else () for _, _, count in drawn]
    spent = [sum(dict(each).values()) for each in held]  # one spot l4 is 1 USD/h
    met = [False] * len(drawn)
    for _ in range(4):
        before = list(held)
        for number in range(len(drawn)):
            most = max(usd, sum(spent))
            claims = [
                pays(f"x/{n}", rate, usd, held[n], priority=priority) for n, (rate, priority, _) in enumerate(drawn)
            ]
            own = claims.pop(number)
            found = allocate(left_for(own, claims, feasible))
            met[number] = isinstance(found, Allocation)
            held[number] = (found if isinstance(found, Allocation) else found.best).replicas
            prices = dict(money(usd).uses)
            spent[number] = math.fsum(prices[key] * count for key, count in held[number])
            assert sum(spent) <= most + 1e-6
    assert (held, sum(spent) <= usd) == (before, True)
    first = max(range(len(drawn)), key=lambda n: (drawn[n][1], -n))
    alone = [n for n, (_, priority, _) in enumerate(drawn) if priority == drawn[first][1]] == [first]
    assert met[first] or not alone or drawn[first][0] > usd
