"""Measured traffic in an LLMService's status, both ways: what plans are made for outlives the operator there.

Called by `kube/status.py`. Rates are rounded before they get here (`planning/traffic.py`), so what is read back is what
was written, and a pass that measures the same writes nothing. Pure.
"""

from __future__ import annotations

import math
from datetime import UTC, date

from medley.api.llmservice_status import Burst, DaysStatus, WorkloadClass, WorkloadStatus
from medley.core.errors import InvalidInputError
from medley.core.workload import Bucket, SizeGrid
from medley.planning.days import HALF_HOURS, Days
from medley.planning.traffic import ClassTraffic, NotMeasured, Traffic


def workload_status(traffic: Traffic | NotMeasured, days: Days | None = None) -> WorkloadStatus | None:
    """Return what is written; None: nothing was measured, and nothing is remembered."""
    known = None if days == Days() else days
    if isinstance(traffic, NotMeasured):
        return None if known is None else WorkloadStatus(days=_days_status(known))
    return WorkloadStatus(
        requests_per_second=f"{traffic.requests_per_second:.3g}",
        requests=traffic.requests,
        input_edges=traffic.grid.input_edges,
        output_edges=traffic.grid.output_edges,
        classes=tuple(
            WorkloadClass(
                input=each.bucket.input,
                output=each.bucket.output,
                requests_per_second=f"{each.requests_per_second:g}",
                made=each.outputs,
            )
            for each in traffic.classes
        ),
        bursts=tuple(Burst(window_seconds=length, dispersion=f"{value:g}") for length, value in traffic.bursts),
        measured_at=traffic.measured_at.astimezone(UTC).replace(microsecond=0),
        days=None if known is None else _days_status(known),
    )


def traffic_in(status: WorkloadStatus | None) -> Traffic | None:
    """Return what was written; None if nothing was, or nothing that this version understands: it is measured anew."""
    if status is None or status.measured_at is None:
        return None
    try:
        grid = SizeGrid(status.input_edges, status.output_edges)
        traffic = Traffic(
            grid=grid,
            classes=tuple(
                ClassTraffic(Bucket(each.input, each.output), float(each.requests_per_second), each.made)
                for each in status.classes
            ),
            bursts=tuple((each.window_seconds, float(each.dispersion)) for each in status.bursts),
            requests=status.requests,
            measured_at=status.measured_at,
        )
        served = traffic.demand.requests_per_second
    except (InvalidInputError, ValueError, ZeroDivisionError):
        return None
    return traffic if served else None


def days_in(status: WorkloadStatus | None) -> Days | None:
    """Return what was written of days; None if nothing was, or nothing that this version understands."""
    written = status.days if status is not None else None
    if written is None or len(written.requests_per_second) != HALF_HOURS:
        return None
    try:
        rates = tuple(float(each) if each else None for each in written.requests_per_second)
        days = Days(
            rates=rates,
            spread=float(written.spread or 0),
            seen=written.half_hours,
            until=written.until,
            on=date.fromisoformat(written.changed_on) if written.changed_on else None,
            changes=written.changes,
        )
    except ValueError:
        return None
    figures = (*(each for each in rates if each is not None), days.spread)
    return days if all(math.isfinite(each) and each >= 0 for each in figures) else None


def _days_status(days: Days) -> DaysStatus:
    return DaysStatus(
        requests_per_second=tuple("" if each is None else f"{each:g}" for each in days.rates),
        spread=f"{days.spread:g}",
        half_hours=days.seen,
        until=days.until,
        changed_on="" if days.on is None else days.on.isoformat(),
        changes=days.changes,
    )
