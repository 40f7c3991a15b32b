"""From a router's metrics, as any scraper reads them, to `core.traffic.Counts`; called by `handlers/routers`. Pure."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from medley.core import names
from medley.core.traffic import Arrivals, Counts
from medley.telemetry.reading import missing, reading

_TOTAL = "_total"


def counts(text: str) -> Counts:
    """Return what a router counted; EngineError for what is no exposition of a router's metrics."""
    requests: dict[tuple[int, int], float] = {}
    outputs: dict[tuple[int, int, int], float] = {}
    in_windows: dict[int, float] = {}
    squares: dict[int, float] = {}
    turned_away = None
    with reading():
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                match sample.name.removesuffix(_TOTAL):
                    case names.METRIC_REQUESTS:
                        requests[int(labels[names.LABEL_INPUT]), int(labels[names.LABEL_LIMIT])] = sample.value
                    case names.METRIC_OUTPUTS:
                        size = (int(labels[each]) for each in (names.LABEL_INPUT, names.LABEL_LIMIT, names.LABEL_MADE))
                        outputs[next(size), next(size), next(size)] = sample.value
                    case names.METRIC_TURNED_AWAY:
                        turned_away = sample.value
                    case names.METRIC_WINDOW_REQUESTS:
                        in_windows[int(labels[names.LABEL_WINDOW])] = sample.value
                    case names.METRIC_WINDOW_SQUARES:
                        squares[int(labels[names.LABEL_WINDOW])] = sample.value
                    case _:
                        pass
    if turned_away is None:
        raise missing(f"{names.METRIC_TURNED_AWAY}{_TOTAL}")
    return Counts(
        requests,
        outputs,
        turned_away,
        {length: Arrivals(number, squares.get(length, 0.0)) for length, number in sorted(in_windows.items())},
    )
