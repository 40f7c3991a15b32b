"""`python -m bench [--only AREA]`: measure, print a table, keep build/bench.json; exit 1 if a bar is missed, 2 if an
area could not be measured.

An area is a module of this package with `measure() -> Iterable[Row]`. Rows of areas that were not measured this time
stay in the file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import bench
from bench.rows import Row

FILE = Path("build") / "bench.json"
NOT_AREAS = {"rows"}
WIDE = 240  # columns, where nobody watches
BROKEN = 2


def areas() -> tuple[str, ...]:
    """Return the names of all areas."""
    return tuple(
        module.name
        for module in pkgutil.iter_modules(bench.__path__)
        if module.name not in NOT_AREAS and not module.name.startswith("_")
    )


def measured(area: str) -> tuple[Row, ...]:
    """Measure one area."""
    rows: Iterable[Row] = importlib.import_module(f"bench.{area}").measure()
    return tuple(replace(row, command=row.command or f"make bench ONLY={area}") for row in rows)


def kept(rows: Iterable[Row], measured_areas: Iterable[str]) -> list[dict[str, object]]:
    """Return all rows of the file: the new ones, and the old ones of areas that were not measured."""
    again = set(measured_areas)
    old = json.loads(FILE.read_text()) if FILE.is_file() else []
    stay = [row for row in old if row["name"].split("/")[0] not in again]
    return sorted([*stay, *(asdict(row) for row in rows)], key=lambda row: str(row["name"]))


def table(rows: Iterable[Row]) -> Table:
    """Return the rows as a table for people."""
    shown = Table("WHAT", "MEASURED", "UNIT", "WANT", "MET", "BESIDE", box=None)
    for row in rows:
        met = "" if row.met is None else "[green]yes[/]" if row.met else "[bold red]no[/]"
        shown.add_row(row.name, f"{row.value:,.4g}", row.unit, row.want or "", met, row.peer or "")
    return shown


def main() -> int:
    """Measure and report, area by area; return 1 if a bar is missed, 2 if an area could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure medley.")
    parser.add_argument("--only", choices=areas(), help="one area")
    chosen = parser.parse_args().only
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    missed = broken = False
    FILE.parent.mkdir(exist_ok=True)
    for name in (chosen,) if chosen else areas():
        try:
            with console.status(f"measuring {name}"):
                rows = measured(name)
        except Exception:  # noqa: BLE001  # what one area is wrong about must not cost the figures of the others
            console.print_exception()
            broken = True
            continue
        FILE.write_text(json.dumps(kept(rows, {name}), indent=1) + "\n")
        console.print(table(rows))
        missed |= any(row.met is False for row in rows)
    return BROKEN if broken else 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
