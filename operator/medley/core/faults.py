"""Faults of files that people wrote, in one line. Called wherever YAML is read; knows no parser."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """Return what a parser says as one line: place and problem where it names them."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is not None and mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return " ".join(str(error).split())
