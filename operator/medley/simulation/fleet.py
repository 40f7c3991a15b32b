"""Replicas behind a router that follows a routing table, as `planning.routing.place` does.

    served = serve(requests, replicas, table)

Called by `medley.cli`, the benchmarks and tests. A request whose planned replicas are all full waits in the router,
first come first served within its arrival class.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from medley.core.errors import InvalidInputError
from medley.core.latency import LatencyModel
from medley.core.workload import Bucket
from medley.planning.routing import RoutingTable
from medley.simulation.arrivals import Requests
from medley.simulation.engine import BLOCK_TOKENS, Engine, Ledger
from medley.simulation.served import Served


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica: its name, the key of its shape, and how fast it is."""

    name: str
    shape: str
    model: LatencyModel


def serve(
    requests: Requests,
    replicas: Sequence[Replica],
    table: RoutingTable | None = None,
    *,
    block_tokens: int = BLOCK_TOKENS,
) -> Served:
    """Return what the requests meet; runs until the last one ended.

    `table`: None spreads all requests over all replicas. Raises InvalidInputError if a request can never fit where the
    table sends it.
    """
    if not replicas:
        raise InvalidInputError("replicas", "expected at least one replica to serve the requests")
    run = _Run(requests, replicas, table, block_tokens)
    for request, at_s in enumerate(requests.arrival_s.tolist()):
        run.until(at_s)
        run.arrive(request, at_s)
    run.until(math.inf)
    return Served(
        requests,
        np.array(run.ledger.first_token_s),
        np.array(run.ledger.last_token_s),
        np.array(run.placed, dtype=np.int64),
        run.ledger.preemptions,
    )


class _Run:
    """The engines, the router, and when each engine's present steps end."""

    def __init__(
        self, requests: Requests, replicas: Sequence[Replica], table: RoutingTable | None, block_tokens: int
    ) -> None:
        self.ledger = Ledger(requests.input_tokens.tolist(), requests.output_tokens.tolist())
        self.placed = [-1] * len(requests)
        self._router = _Router(replicas, table, _classes(requests, table))
        self._engines = [Engine(each.model, self.ledger, block_tokens=block_tokens) for each in replicas]
        self._boundaries: list[tuple[float, int]] = []  # heap: time, replica

    def arrive(self, request: int, at_s: float) -> None:
        target = self._router.place(request)
        if target is not None:
            self._put(request, at_s, target)

    def until(self, at_s: float) -> None:
        """Let all steps end that end before then."""
        boundaries, engines, router = self._boundaries, self._engines, self._router
        while boundaries and boundaries[0][0] < at_s:
            now, replica = heappop(boundaries)
            engine = engines[replica]
            if engine.boundary_s != now:
                continue  # an arrival has cut these steps short
            ended = engine.advance()
            if engine.boundary_s != math.inf:
                heappush(boundaries, (engine.boundary_s, replica))
            if ended:
                router.ended(replica, len(ended))
                if router.held:
                    for request, target in router.released():
                        self._put(request, now, target)

    def _put(self, request: int, at_s: float, replica: int) -> None:
        self.placed[request] = replica
        engine = self._engines[replica]
        before = engine.boundary_s
        engine.submit(request, at_s)
        if engine.boundary_s != before:
            heappush(self._boundaries, (engine.boundary_s, replica))


class _Router:
    """The rule of `planning.routing.place` with its state in place, since it is asked once per request."""

    def __init__(self, replicas: Sequence[Replica], table: RoutingTable | None, classes: Sequence[Bucket]) -> None:
        self._classes = classes
        self._running = [0] * len(replicas)
        self._most = [each.model.max_running for each in replicas]
        # Ties go to the name: the first of equals in this order.
        by_name = sorted(range(len(replicas)), key=lambda index: replicas[index].name)
        self._all = by_name
        self._shapes: dict[str, list[int]] = {}
        for index in by_name:
            self._shapes.setdefault(replicas[index].shape, []).append(index)
        # Of one size: then the one with the fewest running is the least loaded, and that is found without arithmetic.
        self._alike = len(set(self._most)) == 1
        self._shares: dict[Bucket, dict[str, float]] = {}
        for bucket, shares in (table.shares if table is not None else {}).items():
            there = {shape: share for shape, share in sorted(shares) if shape in self._shapes}
            if there:
                self._shares[bucket] = there
        self._credit: dict[tuple[Bucket, str], float] = {}
        self._held: dict[Bucket, deque[int]] = {}
        self.held = 0

    def place(self, request: int) -> int | None:
        """Return the replica that takes a request; None: it is held until there is room."""
        bucket = self._classes[request]
        found = None if self._held.get(bucket) else self._chosen(bucket)
        if found is None:
            self._held.setdefault(bucket, deque()).append(request)
            self.held += 1
        else:
            self._running[found] += 1
        return found

    def ended(self, replica: int, requests: int) -> None:
        self._running[replica] -= requests

    def released(self) -> list[tuple[int, int]]:
        """Return held requests that have room now, with their replicas; who came first goes first."""
        gone: list[tuple[int, int]] = []
        stuck: set[Bucket] = set()
        while waiting := [(held[0], bucket) for bucket, held in self._held.items() if held and bucket not in stuck]:
            request, bucket = min(waiting)
            found = self._chosen(bucket)
            if found is None:
                stuck.add(bucket)
                continue
            self._held[bucket].popleft()
            self.held -= 1
            self._running[found] += 1
            gone.append((request, found))
        return gone

    def _chosen(self, bucket: Bucket) -> int | None:
        shares = self._shares.get(bucket)
        if shares is None:
            return self._least_loaded(self._all)
        if len(shares) == 1:
            return self._least_loaded(self._shapes[next(iter(shares))])
        candidates = {
            shape: found for shape in shares if (found := self._least_loaded(self._shapes[shape])) is not None
        }
        if not candidates:
            return None
        whole = sum(shares[shape] for shape in candidates)
        credit = self._credit
        for shape in candidates:
            credit[bucket, shape] = credit.get((bucket, shape), 0.0) + shares[shape] / whole
        chosen = max(candidates, key=lambda shape: credit[bucket, shape])
        credit[bucket, chosen] -= 1.0
        return candidates[chosen]

    def _least_loaded(self, group: list[int]) -> int | None:
        running, most = self._running, self._most
        if self._alike:
            counts = [running[index] for index in group]
            found = group[counts.index(min(counts))]
        else:
            found = min(group, key=lambda index: (running[index] / most[index], running[index]))
        return found if running[found] < most[found] else None


def _classes(requests: Requests, table: RoutingTable | None) -> list[Bucket]:
    """Return the arrival class of every request."""
    if table is None:
        return [Bucket(0, 0)] * len(requests)
    outputs = requests.output_tokens if requests.max_tokens is None else requests.max_tokens
    indices = []
    for edges, tokens in ((table.grid.input_edges, requests.input_tokens), (table.grid.output_edges, outputs)):
        indices.append(np.minimum(np.searchsorted(edges, tokens), len(edges) - 1).tolist())
    known = {(i, o): Bucket(i, o) for i, o in set(zip(*indices, strict=True))}
    return [known[pair] for pair in zip(*indices, strict=True)]
