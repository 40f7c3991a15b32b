"""What one pass does, says and writes: facts about `plan`, with every refusal that a person can meet."""

import itertools
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from medley.core.accelerators import ExistingNodes, Market, NodeOffer, Shape
from medley.core.names import Condition, Reason
from medley.core.notices import Cause, Notice, NoticeSource
from medley.core.service import (
    Forecast,
    Histogram,
    Limits,
    MigrationMode,
    OperatingMode,
    SpotPolicy,
    SpotUse,
    WorkloadSource,
)
from medley.core.workload import Slo
from medley.planning.actions import (
    Assign,
    DeleteBudgets,
    DeleteEngine,
    DeleteNodePool,
    DeleteRouter,
    DeleteSecrets,
    DrainEngine,
    EnsureBudgets,
    EnsureFinalizer,
    EnsureNodePool,
    EnsureRouter,
    EnsureSecrets,
    LaunchEngine,
    ReleaseFinalizer,
)
from medley.planning.conditions import with_refusals
from medley.planning.fleet import Neighbour, PoolKey, ReplicaPhase, RouterState, Standing, Truth, Unavailable
from medley.planning.problem import Binding, Bound
from medley.planning.reconcile import Event, Plan, plan
from medley.testing.builders import (
    GRID,
    NOW,
    accelerator_class,
    observed,
    offering,
    profile,
    replica,
    service,
    steady,
    waiting,
)

SPOT_A, SPOT_B = offering(Market.SPOT, "a"), offering(Market.SPOT, "b")
ON_DEMAND_A = offering(Market.ON_DEMAND, "a")


def said(found: Plan, condition: Condition) -> tuple[Truth, Reason, str]:
    assert found.status is not None
    state = next(each for each in found.status.conditions if each.type is condition)
    return state.status, state.reason, state.message


def settled(seen):
    """Return the pass after this one, the status having been written and nothing else having changed."""
    status = plan(seen, NOW).status
    return replace(
        seen,
        standing=Standing(
            replicas=tuple(sorted(status.proposal.wanted.items())) if status.proposal else seen.standing.replicas,
            unavailable=status.unavailable,
            conditions=status.conditions,
        ),
    )


def launches(found: Plan) -> list[LaunchEngine]:
    return [action for action in found.actions if isinstance(action, LaunchEngine)]


def test_a_new_service_gets_everything_in_order():
    found = plan(observed(finalizer=False, router=RouterState()), NOW)
    assert found.actions == (
        EnsureFinalizer(),
        EnsureSecrets(),
        EnsureNodePool(PoolKey("l4", Market.SPOT)),
        EnsureRouter(),
        EnsureBudgets(1),
        LaunchEngine("chat-l4-s-a-0", SPOT_A),
        LaunchEngine("chat-l4-s-a-1", SPOT_A),
    )
    assert found.status.proposal.allocation.usd_per_hour == pytest.approx(0.8)
    assert found.status.proposal.on_demand_usd_per_hour == pytest.approx(2.0)
    assert (found.status.desired, found.status.ready, found.status.spot) == (2, 0, 0)
    assert said(found, Condition.READY) == (Truth.FALSE, Reason.STARTING, "0 of 2 replicas serve")
    assert found.requeue_after == timedelta(seconds=10)


def test_a_service_that_serves_is_left_alone():
    found = plan(settled(steady()), NOW)
    assert found.actions == (
        EnsureSecrets(),
        EnsureNodePool(PoolKey("l4", Market.SPOT)),
        EnsureRouter(),
        EnsureBudgets(1),
    )
    assert found.events == ()
    assert found.requeue_after == timedelta(seconds=60)
    assert [(each.type, each.status) for each in found.status.conditions] == [
        (condition, Truth.TRUE) for condition in Condition
    ]


def test_an_idle_pass_writes_the_same_status_at_any_time():
    seen = settled(steady())
    assert plan(seen, NOW).status == plan(seen, NOW + timedelta(days=3)).status


def test_only_what_changed_is_news():
    seen = settled(observed(replicas=(replica(n=0), waiting(n=1))))
    assert plan(seen, NOW).events == ()
    served = replace(seen, replicas=(replica(n=0), replica(n=1)))
    assert plan(served, NOW).events == (
        Event(Reason.CAPACITY_THERE, "CapacityReady: 2 of 2 replicas serve"),
        Event(Reason.SERVING, "Ready: The promise is kept by what the plan wants"),
    )


def test_a_condition_keeps_its_time_while_its_status_stays():
    seen = settled(observed(replicas=(replica(n=0), waiting(n=1))))
    later = plan(replace(seen, replicas=(waiting(n=0), waiting(n=1))), NOW + timedelta(minutes=1))
    states = {each.type: each for each in later.status.conditions}
    assert states[Condition.CAPACITY_READY].message == "0 of 2 replicas serve"
    assert {each.since for each in later.status.conditions} == {NOW}


class TestRefusals:
    """Nothing is half-applied: a service that can have no plan changes nothing but its status."""

    def test_an_unknown_class_is_named_with_those_there_are(self):
        found = plan(observed(service=service(classes=("l40",))), NOW)
        assert found.actions == (EnsureSecrets(),)
        assert said(found, Condition.PLAN_FEASIBLE) == (
            Truth.FALSE,
            Reason.UNKNOWN_CLASS,
            "spec.accelerators.classes: no AcceleratorClass named l40; there are: h100, l4",
        )
        assert said(found, Condition.READY)[:2] == (Truth.FALSE, Reason.UNKNOWN_CLASS)
        assert [(event.reason, event.warning) for event in found.events] == [
            (Reason.FORECAST, False),
            (Reason.UNKNOWN_CLASS, True),
        ]

    def test_what_serves_goes_on_while_the_service_is_wrong(self):
        lost = replica(n=0, assigned=False)
        seen = replace(steady(), service=service(classes=("l40",)), replicas=(lost, replica(n=1)))
        assert plan(seen, NOW).actions == (EnsureSecrets(), Assign(lost.name))

    @pytest.mark.parametrize(
        ("mode", "carries", "truth", "reason"),
        [
            (MigrationMode.AUTO, (None, None), Truth.TRUE, Reason.TOKEN_LOG),
            (MigrationMode.AUTO, (True, True), Truth.TRUE, Reason.KV_CARRIED),
            (MigrationMode.AUTO, (True, None), Truth.TRUE, Reason.KV_CARRIED),
            (MigrationMode.AUTO, (True, False), Truth.FALSE, Reason.LIVE_MIGRATION_UNAVAILABLE),
            (MigrationMode.LIVE, (False, False), Truth.FALSE, Reason.LIVE_MIGRATION_UNAVAILABLE),
            (MigrationMode.RESUME, (False, True), Truth.TRUE, Reason.TOKEN_LOG),
        ],
    )
    def test_streams_leave_with_their_kv_if_engines_say_so_and_nothing_waits_for_it(self, mode, carries, truth, reason):
        seen = steady()
        replicas = tuple(
            replace(each, carries=said_so)
            for each, said_so in zip(seen.replicas, itertools.cycle(carries), strict=False)
        )
        found = plan(replace(seen, service=replace(seen.service, migration=mode), replicas=replicas), NOW)
        assert said(found, Condition.MIGRATION_READY)[:2] == (truth, reason)
        assert said(found, Condition.READY)[0] is Truth.TRUE
        assert found.actions == plan(seen, NOW).actions

    def test_no_profile_at_all(self):
        found = plan(observed(profiles=()), NOW)
        assert launches(found) == []
        truth, reason, message = said(found, Condition.PROFILES_READY)
        assert (truth, reason, message) == (
            Truth.FALSE,
            Reason.PROFILE_MISSING,
            (
                "PerformanceProfile: write a PerformanceProfile, measured or estimated, of acme/model-7b on class h100 or l4: "
                "there is none"
            ),
        )
        assert said(found, Condition.PLAN_FEASIBLE) == said(found, Condition.READY) == (truth, reason, message)

    def test_a_profile_that_is_missing_is_no_failure_of_the_solver_where_nothing_is_demanded(self):
        idle = replace(service().forecast, requests_per_second=0.0)
        found = plan(observed(profiles=(), service=service(forecast=idle)), NOW)
        assert said(found, Condition.PLAN_FEASIBLE)[:2] == (Truth.FALSE, Reason.PROFILE_MISSING)

    def test_a_service_on_spot_without_traffic_has_a_plan_and_nothing_to_compare_it_with(self):
        only = accelerator_class("l4")
        only = replace(only, offers=tuple(each for each in only.offers if each.market is Market.SPOT))
        idle = replace(service().forecast, requests_per_second=0.0)
        found = plan(observed(classes=(only,), service=service(forecast=idle)), NOW)
        assert found.status.proposal.wanted == {SPOT_A: 1}
        assert found.status.proposal.on_demand_usd_per_hour is None

    def test_a_class_asked_for_by_name_without_profile(self):
        seen = observed(service=service(classes=("l4", "h100")), profiles=(profile("l4"),))
        truth, reason, message = said(plan(seen, NOW), Condition.PROFILES_READY)
        assert (truth, reason) == (Truth.FALSE, Reason.PROFILE_MISSING)
        assert message == (
            "spec.accelerators.classes names h100 without a profile: "
            "add a PerformanceProfile of acme/model-7b, or remove the name"
        )

    def test_a_class_of_the_catalogue_without_profile_is_left_out_and_named(self):
        found = plan(observed(profiles=(profile("l4"),)), NOW)
        truth, _, message = said(found, Condition.PROFILES_READY)
        assert truth is Truth.TRUE
        assert message == (
            "Planned with model-7b-l4; classes without a profile of acme/model-7b are left out: h100; "
            "l4: TTFT and TPOT are each measured up to percentile 99 only: both together may hold for as few as 98 % of "
            "requests; measure a higher percentile; planned at 85% of what was measured, whatever the bursts and the mix of sizes: l4; "
            "add a latencyModel (medley profile fit)"
        )
        assert len(launches(found)) == 2

    @pytest.mark.parametrize(
        ("changes", "reason", "bound"),
        [
            pytest.param(
                {"slo": Slo(99, timedelta(milliseconds=1), None)}, Reason.SLO_UNREACHABLE, Bound.SIZES, id="slo"
            ),
            pytest.param(
                {"limits": Limits(max_usd_per_hour=Decimal("0.5"))}, Reason.LIMITS_TOO_TIGHT, Bound.BUDGET, id="budget"
            ),
            pytest.param(
                {"limits": Limits(max_replicas=1), "classes": ("l4",)},
                Reason.LIMITS_TOO_TIGHT,
                Bound.REPLICAS,
                id="replicas",
            ),
        ],
    )
    def test_a_demand_that_cannot_be_met_names_the_bound(self, changes, reason, bound):
        found = plan(observed(service=service(**changes)), NOW)
        truth, why, message = said(found, Condition.PLAN_FEASIBLE)
        assert (truth, why) == (Truth.FALSE, reason)
        assert message.startswith(f"{bound.value}: ")
        assert found.status.proposal.infeasible is not None
        assert said(found, Condition.READY)[:2] == (Truth.FALSE, reason)

    @pytest.mark.parametrize("nodes", [pytest.param(0, id="none"), pytest.param(1, id="too-few")])
    def test_caps_that_are_exhausted_are_named(self, nodes):
        capped = accelerator_class("l4", max_nodes=nodes)
        asks_for_six = replace(service().forecast, requests_per_second=10.0)
        seen = observed(classes=(capped,), profiles=(profile("l4"),), service=service(forecast=asks_for_six))
        assert said(plan(seen, NOW), Condition.PLAN_FEASIBLE)[:2] == (Truth.FALSE, Reason.CAPACITY_CAPPED)

    def test_a_model_that_no_class_can_hold(self):
        found = plan(observed(service=service(max_model_len=100_000)), NOW)
        assert launches(found) == []
        assert said(found, Condition.PLAN_FEASIBLE)[1] is Reason.MODEL_TOO_LONG
        assert found.status.proposal.infeasible.bindings == (
            Binding(
                Bound.MODEL_LENGTH,
                "h100 holds 8192 tokens, less than spec.model.maxModelLen 100000; lower it, or use a larger shape; "
                "l4 holds 8192 tokens, less than spec.model.maxModelLen 100000; lower it, or use a larger shape",
            ),
        )
        assert said(found, Condition.PROFILES_READY) == said(found, Condition.PLAN_FEASIBLE)

    @pytest.mark.parametrize(
        ("changes", "reason", "bindings"),
        [
            pytest.param(
                {"classes": ()},
                Reason.UNKNOWN_CLASS,
                ((Bound.CLASSES, "there is no AcceleratorClass: write one for each kind of GPU that may be bought"),),
                id="no class",
            ),
            pytest.param(
                {"profiles": (), "classes": (accelerator_class("l4"),)},
                Reason.PROFILE_MISSING,
                (
                    (
                        Bound.PROFILES,
                        "write a PerformanceProfile, measured or estimated, of acme/model-7b on class l4: there is none",
                    ),
                ),
                id="one class without profile",
            ),
            pytest.param(
                {"service": service(slo=Slo(99, timedelta(milliseconds=1), None)), "profiles": (profile("l4"),)},
                Reason.SLO_UNREACHABLE,
                (
                    (
                        Bound.SIZES,
                        (
                            "l4: SLO: TTFT 1,000 ms at 2 requests/s of 1000 + 1000 tokens, the lowest rate measured, "
                            "limit 1 ms; relax the SLO, lower spec.model.maxModelLen, or add a class that is fast enough"
                        ),
                    ),
                    (
                        Bound.PROFILES,
                        "write a PerformanceProfile, measured or estimated, of acme/model-7b on class h100: there is none",
                    ),
                ),
                id="one too slow, one unprofiled",
            ),
            pytest.param(
                {"profiles": (profile("l4", shape=Shape("l4", 2)),), "classes": (accelerator_class("l4"),)},
                Reason.CAPACITY_CAPPED,
                (
                    (
                        Bound.GPUS_PER_NODE,
                        (
                            "l4-tp2 needs 2 GPUs on one node, which has 1; add the profile of a smaller shape, or a class "
                            "with larger nodes"
                        ),
                    ),
                ),
                id="nodes too small",
            ),
            pytest.param(
                {
                    "service": service(zones=("b",)),
                    "classes": (accelerator_class("l4", offers=(NodeOffer(Market.ON_DEMAND, "a", 1.0, None),)),),
                },
                Reason.LIMITS_TOO_TIGHT,
                (
                    (
                        Bound.ZONES,
                        "l4: not among spec.accelerators.zones; allow a zone in which the class is sold",
                    ),
                ),
                id="other zones",
            ),
            pytest.param(
                {
                    "service": service(spot=SpotPolicy(use=SpotUse.NEVER)),
                    "classes": (accelerator_class("l4", offers=(NodeOffer(Market.SPOT, "a", 0.4, None),)),),
                },
                Reason.LIMITS_TOO_TIGHT,
                (
                    (
                        Bound.SPOT_USE,
                        ("l4: spec.spot.policy is Never; allow spot, or add the price of on-demand nodes to the class"),
                    ),
                ),
                id="spot only",
            ),
            pytest.param(
                {"classes": (accelerator_class("l4", offers=()),)},
                Reason.CAPACITY_CAPPED,
                ((Bound.CAPS, "l4: spec.zones of the AcceleratorClass names no price; add a price"),),
                id="no price",
            ),
        ],
    )
    def test_where_nothing_is_on_offer_what_rules_each_class_out_is_the_bound(self, changes, reason, bindings):
        found = plan(observed(**changes), NOW)
        assert found.status.proposal.infeasible.bindings == tuple(Binding(*each) for each in bindings)
        assert said(found, Condition.PLAN_FEASIBLE) == (
            Truth.FALSE,
            reason,
            "; ".join(f"{bound}: {message}" for bound, message in bindings),
        )

    def test_what_the_cluster_refused_becomes_a_condition(self):
        seen = observed()
        refused = [(Reason.QUOTA_EXCEEDED, "exceeded quota: gpus")]
        states = with_refusals(seen, plan(seen, NOW).status.conditions, refused, NOW)
        by_type = {each.type: (each.status, each.reason, each.message) for each in states}
        expected = (Truth.FALSE, Reason.QUOTA_EXCEEDED, "exceeded quota: gpus")
        assert by_type[Condition.CAPACITY_READY] == by_type[Condition.READY] == expected
        assert by_type[Condition.PLAN_FEASIBLE][0] is Truth.TRUE

    @pytest.mark.parametrize(
        ("trouble", "reason", "words"),
        [
            pytest.param(
                {"phase": ReplicaPhase.STARTING, "reason": "ErrImagePull", "message": "image x:1 cannot be pulled"},
                Reason.IMAGE_NOT_PULLED,
                "chat-l4-s-a-1: image x:1 cannot be pulled; correct spec.engine.image, or the AcceleratorClass's, "
                "or give spec.engine.imagePullSecrets",
                id="image",
            ),
            pytest.param(
                {"phase": ReplicaPhase.FAILED, "reason": "EngineFailed", "message": "/model: not found"},
                Reason.ENGINE_FAILED,
                "chat-l4-s-a-1: /model: not found; it is tried again every five minutes, "
                "and at once when the service changes",
                id="engine",
            ),
            pytest.param(
                {"phase": ReplicaPhase.STARTING, "reason": "CrashLoopBackOff", "message": "container engine ends"},
                Reason.CONTAINER_FAILED,
                "chat-l4-s-a-1: container engine ends; see its pod's events and logs",
                id="crash",
            ),
        ],
    )
    def test_what_keeps_a_replica_from_serving_is_said_with_the_remedy(self, trouble, reason, words):
        young = {"created_at": NOW - timedelta(minutes=1)}
        seen = observed(replicas=(waiting(n=0), replica(n=1, **trouble, **young)))
        assert said(plan(seen, NOW), Condition.CAPACITY_READY) == (Truth.FALSE, reason, words)


class TestCapacity:
    """Spot falls back to other zones and on-demand; what could not be had is remembered for ten minutes."""

    def test_a_minute_without_a_node_is_remembered_and_planned_around(self):
        stuck = waiting(n=1, since=NOW - timedelta(seconds=60), message="sold out")
        found = plan(observed(replicas=(replica(n=0), stuck)), NOW)
        assert found.status.unavailable == (Unavailable(SPOT_A, NOW + timedelta(minutes=10), "sold out"),)
        assert launches(found) == [LaunchEngine("chat-l4-s-b-0", SPOT_B)]
        assert DeleteEngine(stuck.name, stuck.uid, "not wanted any more") in found.actions

    def test_less_than_a_minute_is_waited_for(self):
        since = NOW - timedelta(seconds=45)
        found = plan(observed(replicas=(replica(n=0), waiting(n=1, since=since))), NOW)
        assert (found.status.unavailable, launches(found)) == ((), [])
        assert said(found, Condition.CAPACITY_READY)[1] is Reason.CAPACITY_UNAVAILABLE

    def test_the_next_pass_is_when_the_minute_is_over(self):
        since = NOW - timedelta(seconds=55)
        found = plan(observed(replicas=(replica(n=0), waiting(n=1, since=since))), NOW)
        assert found.requeue_after == timedelta(seconds=5)

    def test_no_spot_anywhere_falls_back_to_on_demand(self):
        memory = tuple(Unavailable(key, NOW + timedelta(minutes=5), "sold out") for key in (SPOT_A, SPOT_B))
        h100 = tuple(
            Unavailable(offering(Market.SPOT, zone, "h100"), NOW + timedelta(minutes=5), "sold out") for zone in "ab"
        )
        found = plan(observed(standing=Standing(unavailable=memory + h100)), NOW)
        assert launches(found) == [
            LaunchEngine("chat-l4-d-a-0", ON_DEMAND_A),
            LaunchEngine("chat-l4-d-a-1", ON_DEMAND_A),
        ]

    def test_the_memory_ends(self):
        memory = (Unavailable(SPOT_A, NOW, "sold out"), Unavailable(SPOT_B, NOW, "sold out"))
        found = plan(observed(standing=Standing(unavailable=memory)), NOW)
        assert found.status.unavailable == ()
        assert {action.offering for action in launches(found)} == {SPOT_A}

    def test_where_nothing_else_is_to_be_had_pods_go_on_waiting(self):
        only = accelerator_class("l4")
        only = replace(only, offers=tuple(each for each in only.offers if (each.market, each.zone) == ("spot", "a")))
        stuck = tuple(waiting(n=n, since=NOW - timedelta(minutes=2)) for n in range(2))
        found = plan(observed(classes=(only,), profiles=(profile("l4"),), replicas=stuck), NOW)
        assert found.status.proposal.wanted == {SPOT_A: 2}
        assert [action for action in found.actions if isinstance(action, DeleteEngine | LaunchEngine)] == []
        assert said(found, Condition.CAPACITY_READY)[1] is Reason.CAPACITY_UNAVAILABLE

    def test_what_may_not_be_bought_any_more_is_not_waited_for(self):
        only = accelerator_class("l4")
        only = replace(only, offers=tuple(each for each in only.offers if each.market is Market.SPOT))
        stuck = tuple(waiting(key, since=NOW - timedelta(minutes=2)) for key in (SPOT_A, SPOT_B))
        seen = observed(classes=(only,), profiles=(profile("l4"),), replicas=stuck, service=service(zones=("b",)))
        assert plan(seen, NOW).status.proposal.wanted == {SPOT_B: 1}

    def test_an_existing_class_gets_no_node_pool(self):
        there = replace(accelerator_class("l4"), nodes=ExistingNodes((("gpu", "l4"),)))
        found = plan(observed(classes=(there,), profiles=(profile("l4"),)), NOW)
        assert not [action for action in found.actions if isinstance(action, EnsureNodePool)]
        assert len(launches(found)) == 2


class TestDamping:
    """The plan that stands stays unless the new one saves a tenth."""

    def test_a_small_saving_moves_nothing(self):
        cheaper = accelerator_class("l4")
        offers = tuple(
            replace(each, usd_per_node_hour=0.37) if (each.market, each.zone) == ("spot", "b") else each
            for each in cheaper.offers
        )
        seen = replace(steady(), classes=(replace(cheaper, offers=offers),), profiles=(profile("l4"),))
        assert plan(seen, NOW).status.proposal.wanted == {SPOT_A: 2}

    def test_a_large_saving_moves_make_before_break(self):
        cheaper = accelerator_class("l4")
        offers = tuple(
            replace(each, usd_per_node_hour=0.30) if (each.market, each.zone) == ("spot", "b") else each
            for each in cheaper.offers
        )
        seen = replace(steady(), classes=(replace(cheaper, offers=offers),), profiles=(profile("l4"),))
        found = plan(seen, NOW)
        assert [action.offering for action in launches(found)] == [SPOT_B, SPOT_B]
        assert not [action for action in found.actions if isinstance(action, DrainEngine | DeleteEngine)]
        ready = replace(seen, replicas=(*seen.replicas, replica(SPOT_B, 0), replica(SPOT_B, 1)))
        assert [action.replica for action in plan(ready, NOW).actions if isinstance(action, DrainEngine)] == [
            each.name for each in seen.replicas
        ]

    def test_a_plan_that_no_longer_serves_gives_way(self):
        grown = replace(steady().service.forecast, requests_per_second=5.0)
        found = plan(steady(service=service(forecast=grown)), NOW)
        assert found.status.proposal.wanted == {SPOT_A: 3}


class TestNotices:
    """A node that goes away is replaced at once."""

    def notice(self, node: str, source: NoticeSource = NoticeSource.KARPENTER_TAINT) -> Notice:
        return Notice(node, NOW + timedelta(seconds=30), source, Cause.RECLAIMED)

    def test_a_notice_launches_the_replacement_in_the_same_pass(self):
        seen = steady()
        gone = seen.replicas[0]
        found = plan(replace(settled(seen), notices=(self.notice(gone.node),)), NOW)
        assert launches(found) == [LaunchEngine("chat-l4-s-a-2", SPOT_A)]
        assert not [action for action in found.actions if isinstance(action, DeleteEngine | DrainEngine)]
        assert (found.status.ready, found.status.desired) == (1, 2)
        assert found.events[-2] == Event(
            Reason.NOTICE,
            "Node node-of-chat-l4-s-a-0 goes away (Reclaimed, by KarpenterTaint): chat-l4-s-a-0 is replaced",
            warning=True,
        )

    def test_a_node_that_is_gone_takes_its_pod_along(self):
        seen = steady()
        gone = seen.replicas[0]
        lost = replace(self.notice(gone.node, NoticeSource.NODE_GONE), deadline=NOW)
        found = plan(replace(seen, notices=(lost,)), NOW)
        assert DeleteEngine(gone.name, gone.uid, "its node is gone", force=True) in found.actions

    def test_a_pod_that_is_being_deleted_is_replaced_too(self):
        seen = steady()
        leaving = replace(seen.replicas[0], leaving=True)
        found = plan(replace(seen, replicas=(leaving, seen.replicas[1])), NOW)
        assert launches(found) == [LaunchEngine("chat-l4-s-a-2", SPOT_A)]


class TestPlanMode:
    """spec.mode Plan computes, shows and changes nothing."""

    def test_nothing_is_made(self):
        unmade = observed(service=service(mode=OperatingMode.PLAN), finalizer=False, router=RouterState(exists=False))
        found = plan(unmade, NOW)
        assert found.actions == ()
        assert found.status.proposal.wanted == {SPOT_A: 2}
        assert said(found, Condition.CAPACITY_READY)[:2] == (Truth.UNKNOWN, Reason.PLAN_ONLY)

    def test_what_serves_goes_on(self):
        restarted = replica(n=0, assigned=False, phase=ReplicaPhase.STARTING)
        seen = steady(service=service(mode=OperatingMode.PLAN), replicas=(restarted, replica(SPOT_B, 0)))
        assert plan(seen, NOW).actions == (EnsureSecrets(), Assign(restarted.name))


class TestFarewell:
    """Deletion: routers, engines, the rest, the finalizer; each step waits for the one before."""

    def test_routers_first(self):
        assert plan(steady(deleting=True), NOW).actions == (DeleteRouter(),)

    def test_router_pods_are_waited_for(self):
        assert plan(steady(deleting=True, router=RouterState(exists=False, pods=1)), NOW).actions == (DeleteRouter(),)

    def test_then_engines(self):
        seen = steady(deleting=True, router=RouterState())
        assert plan(seen, NOW).actions == tuple(
            DeleteEngine(each.name, each.uid, "the service is deleted") for each in seen.replicas
        )

    def test_engines_on_their_way_out_are_waited_for(self):
        leaving = tuple(replace(each, leaving=True) for each in steady().replicas)
        found = plan(steady(deleting=True, router=RouterState(), replicas=leaving), NOW)
        assert (found.actions, found.requeue_after) == ((), timedelta(seconds=1))

    def test_then_the_rest_and_only_the_pools_that_nobody_else_uses(self):
        mine, shared = PoolKey("l4", Market.SPOT), PoolKey("l4", Market.ON_DEMAND)
        seen = observed(
            deleting=True,
            router=RouterState(),
            pools=frozenset({mine, shared}),
            pools_of_others=frozenset({shared}),
        )
        assert plan(seen, NOW) == Plan(
            (DeleteRouter(), DeleteBudgets(), DeleteSecrets(), DeleteNodePool(mine), ReleaseFinalizer()),
            None,
            (),
            timedelta(seconds=1),
        )

    def test_without_our_finalizer_there_is_nothing_to_do(self):
        assert plan(observed(deleting=True, finalizer=False), NOW) == Plan((), None, (), None)


def test_spot_never_buys_no_spot():
    found = plan(observed(service=service(spot=SpotPolicy(SpotUse.NEVER))), NOW)
    assert {action.offering.market for action in launches(found)} == {Market.ON_DEMAND}
    assert said(found, Condition.SPOT_HEDGED)[:2] == (Truth.TRUE, Reason.NO_SPOT)


def test_an_observed_workload_is_unknown_until_it_is_measured():
    found = plan(observed(service=service(workload_source=WorkloadSource.OBSERVED)), NOW)
    assert said(found, Condition.WORKLOAD_OBSERVED)[0] is Truth.UNKNOWN


def test_a_service_without_routers_is_not_ready():
    found = plan(steady(router=RouterState(exists=True, pods=2, ready=0)), NOW)
    assert said(found, Condition.READY)[:2] == (Truth.FALSE, Reason.ROUTER_NOT_READY)


def test_a_service_keeps_to_what_others_leave_and_says_who_takes_it():
    classes = (accelerator_class("l4", max_nodes=1),)  # one in each market and zone: four
    wants = service(forecast=Forecast(6.0, Histogram(GRID, ((1.0,),))))  # four l4
    seen = observed(service=wants, classes=classes, profiles=(profile("l4"),))
    assert len(launches(plan(seen, NOW))) == 4
    held = Neighbour("default/other", service(name="other"), ((SPOT_A, 1), (SPOT_B, 1)))
    found = plan(replace(seen, neighbours=(held,)), NOW)
    assert len(launches(found)) == 2
    status, reason, message = said(found, Condition.PLAN_FEASIBLE)
    assert (status, reason) == (Truth.FALSE, Reason.CAPACITY_CAPPED)
    assert "nodes of l4, spot, a, of 1 default/other takes 1 (0)" in message
    # With a higher priority the plan is made, as soon as the other lets go.
    free = replace(held, held=())
    first = replace(seen, service=replace(wants, priority=1), neighbours=(free,))
    assert len(launches(plan(first, NOW))) == 4


def test_a_service_in_mode_plan_takes_only_what_it_holds():
    classes = (accelerator_class("l4", max_nodes=1),)
    wants = service(forecast=Forecast(6.0, Histogram(GRID, ((1.0,),))))
    idle = Neighbour("default/other", service(name="other", mode=OperatingMode.PLAN, priority=9))
    seen = observed(service=wants, classes=classes, profiles=(profile("l4"),), neighbours=(idle,))
    assert len(launches(plan(seen, NOW))) == 4
