"""Whether capacities serve a demand, and if not, the inequality that says why.

Called by `cover` and `allocator`. All that the shares x of docs/allocation.md ask of the replicas is that the
capacities C_s of the few shapes lie in a polyhedron. By linear duality it is the set of all C with

    sum_s P_s C_s >= sum_b q_b served_b     for every p >= 0, with P_s = sum_r p_sr and q_b = min_s sum_r p_sr load_srb

(r: what bounds a replica of the shape; the minimum is over shapes that can serve b). The weights p of one such
inequality say nothing of prices, caps or which offerings exist, so what was learnt once serves again when those change;
q follows from p whatever the demand is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medley.core.accelerators import Shape
from medley.planning.ilp import Effort, Model, Numbers, Point
from medley.planning.problem import AllocationProblem

# A violation must exceed what the solver lets pass, or the same inequality would be found for ever. Loads below the
# absolute bound are looked after by `Cover.basic`.
_RELATIVE = 1e-5
_ABSOLUTE = 1e-7
_SMALLEST_WEIGHT = 1e-9
_NO_CAPACITY = 1e-9
_HIDDEN = 1e-4  # part of a bucket's demand
_LEAST_UTILISATION = 1e-6
_LEAST_PRICE = 1e-3  # of the highest


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights p of one inequality, by shape and name of what bounds a replica of it; those that are not 0.

    `without`: the inequality says that a replica of one of these is enough, and counts the others.
    """

    of: tuple[tuple[tuple[Shape, str], float], ...]
    without: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """One inequality in numbers: P per shape, q per bucket, in the order of `Separation`."""

    weights: Weights
    shapes: Numbers
    buckets: Numbers


class Separation:
    """The loads of one problem's demand in numbers, and the small linear programme that finds violated inequalities.

    The programme buys what capacity is missing at the price of the shape: what it pays for is the inequality.
    """

    def __init__(self, problem: AllocationProblem) -> None:
        self.shapes = tuple(problem.rates)
        demand = sorted(problem.demand.requests_per_second)
        place = {bucket: number for number, (bucket, _) in enumerate(demand)}
        names = [(s, name, row) for s, shape in enumerate(self.shapes) for name, row in problem.rows[shape]]
        able = np.zeros((len(self.shapes), len(demand)), dtype=bool)
        loads = np.zeros((len(names), len(demand)))
        for number, (s, _, row) in enumerate(names):
            entries = [(column, load) for b, load in row.items() if (column := place.get(b)) is not None]
            columns, values = zip(*entries, strict=True) if entries else ((), ())
            loads[number, columns] = values
            if len(row) == len(problem.rates[self.shapes[s]]):  # the same sizes: no need to look them up again
                able[s, columns] = True
        for s, rates in enumerate(problem.rates.values()):
            if not able[s].any():
                able[s, [column for b in rates if (column := place.get(b)) is not None]] = True
        served: npt.NDArray[np.bool_] = np.any(able, axis=0)
        self.unservable = tuple(bucket for (bucket, _), some in zip(demand, served, strict=True) if not some)
        self.buckets = tuple(bucket for (bucket, _), some in zip(demand, served, strict=True) if some)
        self.able = able[:, served]
        self.loads = loads[:, served] * np.array([rate for _, rate in demand])[served]
        self.rows = tuple((self.shapes[s], name) for s, name, _ in names)
        self.shape_of_row = np.array([s for s, _, _ in names], dtype=np.intp)
        self._first = np.flatnonzero(np.diff(self.shape_of_row, prepend=-1))  # first row of every shape
        prices = dict.fromkeys(self.shapes, math.inf)
        for each in problem.offerings:
            if each.key.shape in prices:
                usd = each.usd_per_hour / problem.utilisations[each.key]
                prices[each.key.shape] = min(prices[each.key.shape], usd)
        # As weights only: those too small for the solver's tolerances would hide what they weigh.
        weights = np.array(list(prices.values()))
        self.prices = np.maximum(weights / weights.max(initial=0.0), _LEAST_PRICE) if len(weights) else weights
        self._model: Model | None = None
        self._effort = Effort(max_seconds=problem.effort.max_seconds)

    def cut(self, weights: Numbers, absent: npt.NDArray[np.bool_] | None = None) -> Cut:
        """Return the inequality of these weights (per row), with the largest q and then the least P that they allow.

        `absent`: shapes without replicas, of which one would be enough: q is what the others take.
        """
        able = self.able if absent is None else self.able & ~absent[:, None]
        weights = _few_digits(np.where(weights > _SMALLEST_WEIGHT * weights.max(initial=0.0), weights, 0.0))
        each = np.add.reduceat(self.loads * weights[:, None], self._first, axis=0) if len(weights) else able * 1.0
        each = np.where(able, each, math.inf)
        need = each.min(axis=0) if len(each) else np.zeros(len(self.buckets))
        with np.errstate(divide="ignore", invalid="ignore"):
            slack = np.where(able & (each > 0) & np.isfinite(each), need / each, 0.0).max(axis=1, initial=0.0)
        weights = _few_digits(weights * slack[self.shape_of_row])
        each = np.add.reduceat(self.loads * weights[:, None], self._first, axis=0) if len(weights) else each
        need = np.where(able, each, math.inf).min(axis=0) if len(each) else need
        need = np.where(np.isfinite(need), need, 0.0)
        whole: Numbers = np.bincount(self.shape_of_row, weights=weights, minlength=len(self.shapes)).astype(float)
        largest = whole.max(initial=0.0) or 1.0
        kept = tuple(
            (row, float(weight)) for row, weight in zip(self.rows, weights / largest, strict=True) if weight > 0
        )
        whole, need = whole / largest, need / largest
        if absent is None:
            return Cut(Weights(kept), whole, need)
        enough = np.where(absent, float(need.sum()) / _LEAST_UTILISATION, whole)
        return Cut(Weights(kept, tuple(s for s, gone in zip(self.shapes, absent, strict=True) if gone)), enough, need)

    def known(self, weights: Weights) -> Cut:
        """Return the inequality of weights that were learnt, perhaps of another problem; of what is not here: none."""
        given = dict(weights.of)
        return self.cut(np.array([given.get(row, 0.0) for row in self.rows]))

    def by_price(self) -> Cut:
        """Return the inequality that weighs shapes by their prices."""
        share = np.bincount(self.shape_of_row, minlength=len(self.shapes))
        return self.cut((self.prices / np.maximum(share, 1))[self.shape_of_row])

    def violated(self, cut: Cut, capacity: Numbers, served: Numbers) -> bool:
        """Say whether capacities (per shape) break an inequality; `served`: part of every bucket's demand."""
        need = float(cut.buckets @ served)
        return need > float(cut.shapes @ capacity) + _RELATIVE * need + _ABSOLUTE

    def separated(self, capacity: Numbers, served: Numbers, *, whole: bool = True) -> Cut | None:
        """Return an inequality that these capacities violate, or None if they serve.

        `whole`: replicas are, so that a shape without any serves nothing, however small the load.
        """
        if not self.buckets or self._one_serves(capacity, served):
            return None
        if self._model is None:
            # min sum_s price_s missing_s: every bucket served, no shape loaded beyond capacity + missing
            count = len(self.shapes)
            missing = (np.arange(len(self.rows)), self.shape_of_row, np.full(len(self.rows), -1.0))
            self._model = self._flows(np.full(count, math.inf), missing)
        flows = self._model.upper.size - len(self.shapes)
        buckets = len(self.buckets)
        self._model.bound_rows(
            np.concatenate([served, np.full(len(self.rows), -math.inf)]),
            np.concatenate([np.full(buckets, math.inf), capacity[self.shape_of_row]]),
        )
        costs = np.concatenate([np.zeros(flows), self.prices])
        found = self._model.minimise(costs, self._effort, whole=False)
        if not isinstance(found, Point):
            return None
        cut = self.cut(np.maximum(-self._model.duals().rows[buckets:], 0.0))
        if self.violated(cut, capacity, served):
            return cut
        shape, bucket = np.nonzero(self.able)
        absent = capacity <= _NO_CAPACITY
        hidden = absent[shape] & (found.values[:flows] > _HIDDEN * served[bucket])
        return self._seen(self._model, absent, capacity, served) if whole and hidden.any() else None

    def _one_serves(self, capacity: Numbers, served: Numbers) -> bool:
        """Say whether capacity is of one shape, and serves: where no programme is needed to know."""
        if np.count_nonzero(capacity) != 1:
            return False
        only = int(np.argmax(capacity))
        busiest = (self.loads @ served)[self.shape_of_row == only].max()
        return bool(self.able[only].all() and busiest <= capacity[only])

    def _seen(self, model: Model, absent: npt.NDArray[np.bool_], capacity: Numbers, served: Numbers) -> Cut | None:
        """Return the inequality that loads below the solver's tolerance hide on shapes without replicas."""
        shape, _ = np.nonzero(self.able)
        top = np.concatenate([np.where(absent[shape], 0.0, math.inf), np.full(len(self.shapes), math.inf)])
        costs = np.concatenate([np.zeros(len(shape)), self.prices])
        try:
            model.between(np.zeros(len(top)), top)
            found = model.minimise(costs, self._effort, whole=False)
            weights = np.maximum(-model.duals().rows[len(self.buckets) :], 0.0)
        finally:
            model.between(np.zeros(len(top)), np.full(len(top), math.inf))
        if not isinstance(found, Point):
            return None
        cut = self.cut(weights, absent)
        return cut if self.violated(cut, capacity, served) else None

    def levelled(self, capacity: Numbers, served: Numbers) -> tuple[Numbers, float]:
        """Return the shares (shape x bucket) that leave the busiest shape least busy, and how busy that is (1: full).

        The programme that chooses the replicas fills one shape before it uses the next; latency is better when all are
        equally busy, at the same price. Buckets that no capacity serves must have served 0.
        """
        shares = np.zeros(self.able.shape)
        if not served.any():
            return shares, 0.0
        if np.count_nonzero(capacity) == 1:
            only = int(np.argmax(capacity))
            shares[only] = served
            busy = float((self.loads @ served)[self.shape_of_row == only].max() / capacity[only])
            return shares, busy if self.able[only][served > 0].all() else math.inf
        busiest = (np.arange(len(self.rows)), np.zeros(len(self.rows), dtype=np.intp), -capacity[self.shape_of_row])
        model = self._flows(np.array([math.inf]), busiest)
        model.bound_rows(
            np.concatenate([served, np.full(len(self.rows), -math.inf)]),
            np.concatenate([served, np.zeros(len(self.rows))]),
        )
        shape, bucket = np.nonzero(self.able)
        model.between(np.zeros(len(shape) + 1), np.array([*np.where(capacity[shape] > 0, 1.0, 0.0), math.inf]))
        found = model.minimise(np.array([*np.zeros(len(shape)), 1.0]), self._effort, whole=False)
        if not isinstance(found, Point):
            return shares, math.inf
        shares[shape, bucket] = found.values[:-1]
        return shares, found.objective

    def _flows(self, more: Numbers, entries: tuple[npt.NDArray[Any], npt.NDArray[Any], Numbers]) -> Model:
        """Return a programme of a flow per able shape and bucket, and `more` columns (their upper bounds).

        Its rows are the buckets, then what bounds each shape, where `entries` (row, column, value) are those of `more`.
        """
        shape, bucket = np.nonzero(self.able)
        flows = len(shape)
        row, flow = np.nonzero(self.shape_of_row[:, None] == shape[None, :])
        rows = np.concatenate([bucket, len(self.buckets) + row, len(self.buckets) + entries[0]])
        columns = np.concatenate([np.arange(flows), flow, flows + entries[1]])
        values = np.concatenate([np.ones(flows), self.loads[row, bucket[flow]], entries[2]])
        order = np.argsort(rows, kind="stable")
        count = len(self.buckets) + len(self.rows)
        starts = np.searchsorted(rows[order], np.arange(count))
        model = Model.of_columns(np.concatenate([np.full(flows, math.inf), more]))
        model.add_arrays(np.full(count, -math.inf), np.full(count, math.inf), starts, columns[order], values[order])
        return model


def _few_digits(weights: Numbers) -> Numbers:
    """Round to six digits, so that an inequality found twice is the same; any weights make a valid one."""
    with np.errstate(divide="ignore"):
        unit = 10.0 ** (np.floor(np.log10(np.where(weights > 0, weights, 1.0))) - 5)
    return np.round(weights / unit) * unit
