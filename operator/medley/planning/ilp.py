"""The only door to HiGHS: a mixed-integer linear programme as a value, and its solution as a value.

Called by `cover`, `separation`, `allocator`, `shortage` and `melange`. Knows nothing of GPUs.

    minimise(programme, objective, effort)      once
    model = Model(programme)                    several times: rows are added, objectives and bounds changed, and each
    model.minimise(objective, effort)           solve starts from where the last one ended

Solutions repeat: one thread, a fixed seed, a limit on nodes; the time limit is a safety net that ordinary runs never
meet.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import numpy.typing as npt

from medley.core.errors import SolverError

# HiGHS: kSolutionStatusFeasible of HighsInfo.primal_solution_status
_HAS_SOLUTION = 2
_STOPPED_AT_A_LIMIT = frozenset({"kTimeLimit", "kSolutionLimit", "kIterationLimit", "kInterrupt"})
# "Unbounded or infeasible" is infeasible here: every objective is bounded below, its terms and variables being >= 0.
_WITHOUT_SOLUTION = frozenset({"kInfeasible", "kUnboundedOrInfeasible"})
_LOST = frozenset({"kUnknown", "kNotset"})
# Numbers far apart: from the beginning, presolved or as they are, the solver mostly finds its way.
_SCALING, _AS_IT_IS, _EQUILIBRATED = 2, 0, 3  # HiGHS: forced equilibration (its own choice), none, another
_OTHERWISE = (("on", _SCALING), ("off", _AS_IT_IS), ("off", _EQUILIBRATED))
_INTEGER_TOLERANCE = 1e-4
_EXACT = 1e-6  # relative: a bound this near is the solver's tolerance, not a gap
_OPTIONS: dict[str, bool | int | float | str] = {"output_flag": False, "threads": 1, "random_seed": 0}
# Below so many columns a linear programme is solved sooner than it is presolved.
_FEW_COLUMNS = 1_000
# With many integers HiGHS spends more time on smaller programmes that may hold a better plan than it saves by them.
_MANY = 61
_MANY_WHOLE: dict[str, bool | int | float | str] = {
    "mip_heuristic_effort": 0.0,
    "mip_heuristic_run_rins": False,
    "mip_heuristic_run_rens": False,
    "mip_heuristic_run_feasibility_jump": False,
}

# Where a plan is known to begin from, these find little that is better, and take most of the time.
_WITHOUT_START = ("mip_allow_restart", "mip_heuristic_run_root_reduced_cost")

# Coefficient by key. Any, because a mapping that is only read is still not covariant in its keys.
Terms = Mapping[Any, float]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long the solver may look. The node limit is repeatable; the time is a safety net only.

    `relative_gap`: how far above the least possible an objective may be; None: as far as the size of the problem
    allows (docs/allocation.md).
    """

    max_nodes: int = 5_000
    max_seconds: float = 20.0
    relative_gap: float | None = None


@dataclass(frozen=True, slots=True)
class Variable:
    """A quantity to choose, 0 or more; `key` is any frozen value that names it."""

    key: Hashable
    upper: float | None = None  # None: no bound
    integer: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A constraint: at_least <= sum of coefficient x variable <= at_most."""

    terms: Terms
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Programme:
    """What may be chosen, and the constraints."""

    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def with_rows(self, *rows: Row) -> Programme:
        """Return this programme with more constraints."""
        return Programme(self.variables, (*self.rows, *rows))


@dataclass(frozen=True, slots=True)
class Solved:
    """The best values found; `gap` is how far the objective may be above the least possible, relative (0: proven)."""

    values: Mapping[Hashable, float]
    objective: float
    gap: float

    def count(self, key: Hashable) -> int:
        """Return an integer variable's value: rounded, since a solver's 3 may be 2.9999999."""
        value = self.values[key]
        if abs(value - round(value)) > _INTEGER_TOLERANCE:
            raise SolverError(f"the solver returned {value} for the integer {key}")
        return round(value)


@dataclass(frozen=True, slots=True)
class Unsolvable:
    """No values satisfy the constraints: proven."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """The limits of the effort were met before any solution was found."""


@dataclass(frozen=True, slots=True)
class Point:
    """A solution in the order of a model's columns; `bound`: no solution has an objective below it."""

    values: Numbers
    objective: float
    bound: float


@dataclass(frozen=True, slots=True)
class Duals:
    """Of a linear programme at its optimum: price of each row's bound, and of each column's (reduced cost)."""

    rows: Numbers
    columns: Numbers


def minimise(programme: Programme, objective: Terms, effort: Effort) -> Solved | Unsolvable | Undecided:
    """Return the values of least objective.

    Raises SolverError for numbers that are not finite and for a numerical failure of the solver.
    """
    model = Model(programme)
    found = model.minimise(model.costs(objective), effort)
    if not isinstance(found, Point):
        return found
    return Solved(dict(zip(model.keys, found.values.tolist(), strict=True)), found.objective, relative_gap(found))


def relative_gap(found: Point) -> float:
    """Return how far the objective of a point may be above the least possible, as a part of it; 0: proven."""
    if found.objective - found.bound <= _EXACT * max(1.0, abs(found.objective)):
        return 0.0
    return (found.objective - found.bound) / abs(found.objective) if found.objective else math.inf


class Model:
    """A programme inside the solver; `place` and `keys` translate between names of variables and columns."""

    def __init__(self, programme: Programme, *, solvable: bool = False) -> None:
        """Take up a programme; `solvable`: it has a solution, so that a solver that sees none has lost its way."""
        upper = np.array([math.inf if v.upper is None else v.upper for v in programme.variables], dtype=float)
        whole = np.array([v.integer for v in programme.variables], dtype=bool)
        self._begin([variable.key for variable in programme.variables], upper, whole)
        self._solvable = solvable
        self.add(programme.rows)

    @classmethod
    def of_columns(cls, upper: Numbers) -> Model:
        """Return a model of continuous columns without names and without rows."""
        model = cls.__new__(cls)
        model._begin(range(len(upper)), upper, np.zeros(len(upper), dtype=bool))  # noqa: SLF001  # of its own class
        return model

    def _begin(self, keys: Sequence[Hashable], upper: Numbers, integer: npt.NDArray[np.bool_]) -> None:
        self.keys = keys
        self.upper, self.integer = upper, integer
        self.place = {key: number for number, key in enumerate(keys)} if isinstance(keys, list) else {}
        self._whole = self._solvable = False
        self._empty_row_fails = False
        self.height = 0  # rows so far
        if np.isnan(upper).any():
            raise SolverError("a number in the programme is not finite")
        self._highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (_OPTIONS | (_MANY_WHOLE if np.count_nonzero(integer) >= _MANY else {})).items():
            self._highs.setOptionValue(option, value)
        self._presolve = "off" if len(upper) < _FEW_COLUMNS else "choose"
        self._highs.setOptionValue("presolve", self._presolve)
        self._highs.addVars(len(upper), np.zeros(len(upper)), upper)
        self._places = np.arange(len(upper), dtype=np.int32)
        self._costs: Numbers | None = None

    def costs(self, terms: Terms) -> Numbers:
        """Return an objective as a vector."""
        vector = np.zeros(len(self.keys))
        for key, coefficient in terms.items():
            vector[self.place[key]] = coefficient
        return vector

    def add(self, rows: Iterable[Row]) -> None:
        """Add constraints."""
        rows = tuple(rows)
        # A row without variables holds or does not.
        self._empty_row_fails |= any(
            (row.at_least or 0.0) > 0 or (row.at_most or 0.0) < 0 for row in rows if not row.terms
        )
        rows = tuple(row for row in rows if row.terms)
        self.add_arrays(
            np.array([-math.inf if row.at_least is None else row.at_least for row in rows]),
            np.array([math.inf if row.at_most is None else row.at_most for row in rows]),
            np.cumsum([0, *(len(row.terms) for row in rows)])[:-1],
            np.array([self.place[key] for row in rows for key in row.terms], dtype=np.int32),
            np.array([coefficient for row in rows for coefficient in row.terms.values()], dtype=float),
        )

    def add_arrays(
        self,
        at_least: Numbers,
        at_most: Numbers,
        starts: npt.NDArray[Any],
        columns: npt.NDArray[Any],
        coefficients: Numbers,
    ) -> None:
        """Add constraints, written row by row: row r has the entries from starts[r] to starts[r + 1]."""
        _refuse_not_finite(coefficients, np.where(np.isneginf(at_least), 0.0, at_least))
        _refuse_not_finite(np.where(np.isposinf(at_most), 0.0, at_most))
        if len(starts) and not len(columns):
            self._empty_row_fails |= bool((at_least > 0).any() or (at_most < 0).any())
        elif len(starts):
            self.height += len(starts)
            self._highs.addRows(
                len(starts),
                at_least,
                at_most,
                len(columns),
                starts.astype(np.int32),
                columns.astype(np.int32),
                coefficients,
            )

    def table(self) -> tuple[Numbers, Numbers, Numbers]:
        """Return the rows so far: at least, at most, and coefficients, row by row and column by column."""
        programme = self._highs.getLp()
        matrix = programme.a_matrix_
        coefficients = np.zeros((self.height, len(self.keys)))
        lines = np.repeat(np.arange(len(matrix.start_) - 1), np.diff(matrix.start_))
        entries = np.array(matrix.index_, dtype=np.intp)
        by_row = matrix.format_ == highspy.MatrixFormat.kRowwise
        rows, columns = (lines, entries) if by_row else (entries, lines)
        coefficients[rows, columns] = np.array(matrix.value_)
        return np.array(programme.row_lower_), np.array(programme.row_upper_), coefficients

    def between(self, lower: Numbers, upper: Numbers) -> None:
        """Change the bounds of all columns."""
        self._highs.changeColsBounds(len(lower), self._places, lower, upper)

    def bound_rows(self, at_least: Numbers, at_most: Numbers) -> None:
        """Change the bounds of all rows, in the order of adding."""
        self._highs.changeRowsBounds(len(at_least), np.arange(len(at_least), dtype=np.int32), at_least, at_most)

    def minimise(
        self, costs: Numbers, effort: Effort, *, whole: bool = True, start: Numbers | None = None
    ) -> Point | Unsolvable | Undecided:
        """Return the point of least cost; not `whole`: integers may be fractions.

        `start`: a whole point to begin from, which spares the search all that is dearer; it need not satisfy the rows.
        """
        if self._empty_row_fails:
            return Unsolvable()
        if not self.keys:
            return Point(np.zeros(0), 0.0, 0.0)
        whole = whole and bool(self.integer.any())
        self._be(whole=whole)
        highs = self._highs
        if self._costs is None or not np.array_equal(self._costs, costs):
            _refuse_not_finite(costs)
            highs.changeColsCost(len(costs), self._places, costs)
            self._costs = costs.copy()
        highs.setOptionValue("time_limit", highs.getRunTime() + effort.max_seconds)
        if whole:
            highs.setOptionValue("mip_max_nodes", effort.max_nodes)
            highs.setOptionValue("mip_rel_gap", _EXACT if effort.relative_gap is None else effort.relative_gap)
            for option in _WITHOUT_START:
                highs.setOptionValue(option, start is None)
            if start is not None:
                given = highspy.HighsSolution()
                given.col_value = start.tolist()
                highs.setSolution(given)
        highs.run()
        lost = _LOST | (_WITHOUT_SOLUTION if self._solvable else frozenset())
        for presolve, scaling in _OTHERWISE:
            if highs.getModelStatus().name not in lost:
                break
            highs.clearSolver()
            highs.setOptionValue("presolve", presolve)
            highs.setOptionValue("simplex_scale_strategy", scaling)
            highs.run()
        found = self._read(costs, whole=whole)
        highs.setOptionValue("presolve", "choose" if whole else self._presolve)
        highs.setOptionValue("simplex_scale_strategy", _SCALING)
        return found

    def _read(self, costs: Numbers, *, whole: bool) -> Point | Unsolvable | Undecided:
        highs = self._highs
        status = highs.getModelStatus().name
        if status in _WITHOUT_SOLUTION:
            return Unsolvable()
        if status in _STOPPED_AT_A_LIMIT and highs.getInfo().primal_solution_status != _HAS_SOLUTION:
            return Undecided()
        if status != "kOptimal" and status not in _STOPPED_AT_A_LIMIT:
            raise SolverError(f"the solver ended with {status.removeprefix('k')}")
        values = np.array(highs.getSolution().col_value)
        if not np.isfinite(values).all():
            raise SolverError("the solver returned values that are not finite")
        objective = math.fsum(costs * values)
        if status != "kOptimal" and not whole:
            return Point(values, objective, -math.inf)
        return Point(values, objective, min(highs.getInfo().mip_dual_bound, objective) if whole else objective)

    def duals(self) -> Duals:
        """Return the prices at the linear optimum just found (after `minimise(..., whole=False)`)."""
        solution = self._highs.getSolution()
        return Duals(np.array(solution.row_dual), np.array(solution.col_dual))

    def _be(self, *, whole: bool) -> None:
        if whole == self._whole:
            return
        kind = highspy.HighsVarType.kInteger if whole else highspy.HighsVarType.kContinuous
        self._highs.setOptionValue("presolve", "choose" if whole else self._presolve)
        places = np.flatnonzero(self.integer).astype(np.int32)
        self._highs.changeColsIntegrality(len(places), places, np.full(len(places), kind.value, dtype=np.uint8))
        self._whole = whole


def _refuse_not_finite(*vectors: Numbers) -> None:
    if not all(np.isfinite(vector).all() for vector in vectors):
        raise SolverError("a number in the programme is not finite")
