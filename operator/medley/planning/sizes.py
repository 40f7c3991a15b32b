"""The requests by which a bucket is judged. Called by `throughput` and `mixture`."""

from __future__ import annotations

from medley.core.workload import Bucket, SizeGrid


def largest_request(grid: SizeGrid, bucket: Bucket, longest: int) -> tuple[int, int] | None:
    """Return the largest input and the largest output that a request of a bucket may have; None: it holds none.

    A request is at most `longest` tokens in all, so its input leaves room for the bucket's shortest output, and the
    other way round.
    """
    inputs, outputs = grid.sizes(bucket)
    shortest_input, shortest_output = grid.smallest(bucket)
    if shortest_input + shortest_output > longest:
        return None
    return min(inputs, longest - shortest_output), min(outputs, longest - shortest_input)
