"""From a router's metrics to `core.migrations.Left`: who left which replica; called by `handlers/routers`. Pure."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from medley.core import names
from medley.core.migrations import How, Left
from medley.telemetry.reading import missing, reading


def departures(text: str) -> Left:
    """Return what a router says of replicas that streams left; EngineError for what is no exposition of that."""
    streams: dict[tuple[str, How], int] = {}
    running: dict[str, int] = {}
    known = False
    with reading():
        for family in text_string_to_metric_families(text):
            match family.name:
                case names.METRIC_LEFT:
                    known = True
                    for sample in family.samples:
                        key = sample.labels[names.LABEL_REPLICA], How(sample.labels[names.LABEL_HOW])
                        streams[key] = int(sample.value)
                case names.METRIC_RUNNING:
                    running = {each.labels[names.LABEL_REPLICA]: int(each.value) for each in family.samples}
                case _:
                    pass
    if not known:
        raise missing(names.METRIC_LEFT)
    return Left(streams, running)
