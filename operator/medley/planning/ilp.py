"""The only door to PuLP and HiGHS: a mixed-integer linear programme as a value, and its solution as a value.

Called by `cover`, `allocator` and `melange`. Knows nothing of GPUs.

Solutions repeat: one thread, a fixed seed, a limit on nodes; the time limit is a safety net that ordinary runs never
meet. PuLP only builds the model, and HiGHS's own status is read: PuLP 3.3 calls a run that was stopped without any
solution "optimal", and raises KeyError at a node limit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pulp

from medley.core.errors import SolverError

# HiGHS: kSolutionStatusFeasible of HighsInfo.primal_solution_status
_HAS_SOLUTION = 2
_STOPPED_AT_A_LIMIT = frozenset({"kTimeLimit", "kSolutionLimit", "kIterationLimit", "kInterrupt"})
# "Unbounded or infeasible" is infeasible here: every objective is bounded below, its terms and variables being >= 0.
_WITHOUT_SOLUTION = frozenset({"kInfeasible", "kUnboundedOrInfeasible"})
_INTEGER_TOLERANCE = 1e-4

# Coefficient by key. Any, because a mapping that is only read is still not covariant in its keys.
Terms = Mapping[Any, float]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long the solver may look. The node limit is repeatable; the time is a safety net only."""

    max_nodes: int = 5_000
    max_seconds: float = 20.0
    relative_gap: float = 1e-6


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


def minimise(programme: Programme, objective: Terms, effort: Effort) -> Solved | Unsolvable | Undecided:
    """Return the values of least objective.

    Raises SolverError for numbers that are not finite and for a numerical failure of the solver.
    """
    _refuse_not_finite(programme, objective)
    # PuLP does not take rows or programmes without variables; such rows hold or do not.
    if any((row.at_least or 0.0) > 0 or (row.at_most or 0.0) < 0 for row in programme.rows if not row.terms):
        return Unsolvable()
    if not programme.variables:
        return Solved({}, 0.0, 0.0)
    problem, columns = _built(programme, objective)
    solver = pulp.HiGHS(
        msg=False,
        threads=1,
        timeLimit=effort.max_seconds,
        gapRel=effort.relative_gap,
        mip_max_nodes=effort.max_nodes,
        random_seed=0,
    )
    solver.createAndConfigureSolver(problem)
    solver.buildSolverModel(problem)
    solver.callSolver(problem)
    model = problem.solverModel
    status, info = model.getModelStatus().name, model.getInfo()
    if status in _WITHOUT_SOLUTION:
        return Unsolvable()
    if status in _STOPPED_AT_A_LIMIT and info.primal_solution_status != _HAS_SOLUTION:
        return Undecided()
    if status != "kOptimal" and status not in _STOPPED_AT_A_LIMIT:
        raise SolverError(f"the solver ended with {status.removeprefix('k')}")
    answer = model.getSolution().col_value
    values = {key: float(answer[column.index]) for key, column in columns.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise SolverError("the solver returned values that are not finite")
    found = math.fsum(coefficient * values[key] for key, coefficient in objective.items())
    return Solved(values, found, _gap(programme, status, info.mip_gap))


def _gap(programme: Programme, status: str, mip_gap: float) -> float:
    if status == "kOptimal":
        return 0.0
    whole = any(variable.integer for variable in programme.variables)
    return float(mip_gap) if whole else math.inf


def _built(programme: Programme, objective: Terms) -> tuple[pulp.LpProblem, dict[Hashable, pulp.LpVariable]]:
    problem = pulp.LpProblem("medley", pulp.LpMinimize)
    columns = {
        variable.key: problem.add_variable(
            # Padded, because PuLP sorts by name and the order of columns decides among equal solutions.
            f"v{number:07d}",
            lowBound=0,
            upBound=variable.upper,
            cat=pulp.LpInteger if variable.integer else pulp.LpContinuous,
        )
        for number, variable in enumerate(programme.variables)
    }
    # Every column is named in the objective: PuLP knows only the variables that it meets in an expression.
    problem.setObjective(_expression(columns, {**dict.fromkeys(columns, 0.0), **objective}))
    for row in (row for row in programme.rows if row.terms):
        for sense, bound in _sides(row):
            problem.addConstraint(pulp.LpConstraint(_expression(columns, row.terms), sense, rhs=bound))
    return problem, columns


def _sides(row: Row) -> Iterator[tuple[int, float]]:
    if row.at_least is not None and row.at_least == row.at_most:
        yield pulp.LpConstraintEQ, row.at_least
        return
    if row.at_least is not None:
        yield pulp.LpConstraintGE, row.at_least
    if row.at_most is not None:
        yield pulp.LpConstraintLE, row.at_most


def _expression(columns: Mapping[Hashable, pulp.LpVariable], terms: Terms) -> pulp.LpAffineExpression:
    return pulp.LpAffineExpression([(columns[key], coefficient) for key, coefficient in terms.items()])


def _refuse_not_finite(programme: Programme, objective: Terms) -> None:
    numbers = [
        *objective.values(),
        *(variable.upper for variable in programme.variables if variable.upper is not None),
        *(bound for row in programme.rows for bound in (row.at_least, row.at_most) if bound is not None),
        *(coefficient for row in programme.rows for coefficient in row.terms.values()),
    ]
    if not all(math.isfinite(number) for number in numbers):
        raise SolverError("a number in the programme is not finite")
