import json

from e2e.stage.market import INSTANCE_TYPES, ZONES, InstanceType, instance_types


def test_a_type_is_offered_in_every_zone_and_market_with_what_this_machine_has() -> None:
    (sold,) = instance_types(2, 1024, [InstanceType("g6.xlarge", 1, 0.8, (0.1, 0.2, 0.3))])

    def offering(price: float, market: str, zone: str) -> dict[str, object]:
        requirements = [
            {"key": "karpenter.sh/capacity-type", "operator": "In", "values": [market]},
            {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]},
        ]
        return {"Price": price, "Available": True, "Requirements": requirements}

    assert sold == {
        "name": "g6.xlarge",
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "resources": {"cpu": "2", "memory": "1024", "ephemeral-storage": "100Gi", "pods": "110", "nvidia.com/gpu": "1"},
        "offerings": [
            offering(0.8, "on-demand", "stage-a"),
            offering(0.1, "spot", "stage-a"),
            offering(0.8, "on-demand", "stage-b"),
            offering(0.2, "spot", "stage-b"),
            offering(0.8, "on-demand", "stage-c"),
            offering(0.3, "spot", "stage-c"),
        ],
    }


def test_spot_is_cheaper_everywhere_and_every_type_has_a_gpu() -> None:
    assert all(each.gpus > 0 and max(each.spot) < each.on_demand for each in INSTANCE_TYPES)
    assert all(len(each.spot) == len(ZONES) for each in INSTANCE_TYPES)
    json.dumps(instance_types(2, 1024))
