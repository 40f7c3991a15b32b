"""Measured traffic in an LLMService's status, both ways: what plans are made for outlives the operator there.

Called by `kube/status.py`. Rates are rounded before they get here (`planning/traffic.py`), so what is read back is what
was written, and a pass that measures the same writes nothing. Pure.
"""

from __future__ import annotations

from datetime import UTC

from medley.api.llmservice_status import Burst, WorkloadClass, WorkloadStatus
from medley.core.errors import InvalidInputError
from medley.core.workload import Bucket, SizeGrid
from medley.planning.traffic import ClassTraffic, Traffic


def workload_status(traffic: Traffic) -> WorkloadStatus:
    """Return what is written."""
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
