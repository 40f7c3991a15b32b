"""The error tree; each border translates into it once.

MedleyError
+-- InvalidInputError        a person must change something: message names the field and the remedy
|   +-- UnknownClassError    an accelerator class that does not exist
|   +-- UnknownBudgetError   a Budget that does not exist
|   +-- UnknownPriceError    an offering without a price
+-- ClusterError             the API server or a cloud said no: try later
|   +-- ObjectGoneError      what we read about is no longer there
+-- EngineError              an engine or its supervisor did not do as asked
+-- SolverError              the solver failed numerically: never an empty plan
"""

from __future__ import annotations


class MedleyError(Exception):
    """Base of every error that medley raises on purpose."""


class InvalidInputError(MedleyError):
    """Input that a person must change; `field` is the path of the offending field, the message says the remedy."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class UnknownClassError(InvalidInputError):
    """An accelerator class that is not in the catalogue."""


class UnknownBudgetError(InvalidInputError):
    """A Budget that is not there."""


class UnknownPriceError(InvalidInputError):
    """An offering that has no price."""


class ClusterError(MedleyError):
    """The API server or a cloud API refused or did not answer; the next pass tries again."""


class ObjectGoneError(ClusterError):
    """The object is no longer there."""


class EngineError(MedleyError):
    """An engine or its supervisor did not do what it was asked."""


class SolverError(MedleyError):
    """The solver failed numerically; the plan that stands is kept."""
