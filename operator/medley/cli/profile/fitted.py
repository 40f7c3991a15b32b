"""`medley profile fit`: a latency model per series of step times, its errors, and a manifest of one of them."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medley.cli import terminal
from medley.cli.profile import points
from medley.cli.profile.manifest import Subject, manifest, written
from medley.core.errors import InvalidInputError
from medley.core.profiles import Confidence, ProfileSource
from medley.planning.fit import Fit, fit, fitted_latency, repeated
from medley.planning.suspicious import of_steps

# Error of sizes left out up to which a fit deserves the name; the operator's plans depend on the error, not on these.
_HIGH, _MEDIUM = 0.1, 0.3


def fits(series: Sequence[points.Series]) -> list[tuple[points.Series, Fit]]:
    """Return the fit of every series; measurements of one size count once, by their median."""
    return [(each, fit(repeated(each.points))) for each in series]


def show(found: Sequence[tuple[points.Series, Fit]], console: Console) -> None:
    """Print coefficients and errors per series, then errors per source."""
    table = Table("SOURCE", "SERIES", "SIZES", "STEP ms", "PREFILL us", "SEQ us", "CONTEXT us", box=None)
    for name in ("FITTED", "BY FOLD", "BY SIZE", "WORST SIZE"):
        table.add_column(name, justify="right")
    for series, each in found:
        context = f"{each.per_context_token_s * 1e6:.3g}" if each.context_known else "unknown"
        table.add_row(
            series.source,
            series.name,
            str(each.sizes),
            f"{each.step_s * 1e3:.3g}",
            f"{each.per_prefill_token_s * 1e6:.3g}",
            f"{each.per_sequence_s * 1e6:.3g}",
            context,
            *(f"{errors.median:.1%} / {errors.p90:.0%}" for errors in (each.within, each.by_fold, each.by_size)),
            f"{each.by_size.worst:.0%}",
        )
    console.print(table)
    sources = Table("SOURCE", "SERIES", "POINTS", "BY FOLD", "BY SIZE", "PREFILL", "DECODE", box=None)
    for source in sorted({series.source for series, _ in found}):
        own = [each for series, each in found if series.source == source]
        sources.add_row(source, str(len(own)), str(sum(each.points for each in own)), *summary(own))
    console.print(sources)
    console.print(
        "Errors: median / 90th percentile of how far off, of the sizes that were fitted, of a fifth left out, of each "
        "size left out; by source the median over its series."
    )


def summary(own: Sequence[Fit]) -> tuple[str, ...]:
    """Return the errors of a source: the median over its series of their medians and 90th percentiles."""
    kinds = [
        [getattr(each, name) for each in own] for name in ("by_fold", "by_size", "by_size_prefill", "by_size_decode")
    ]
    return tuple(
        f"{statistics.median(e.median for e in errors):.1%} / {statistics.median(e.p90 for e in errors):.0%}"
        for errors in kinds
    )


def run(
    paths: Sequence[Path],
    *,
    layers: int,
    series: str | None,
    subject: Subject | None,
    kv_tokens: int | None,
    max_batched_tokens: int,
    out: Path | None,
) -> int:
    """Print the fits; with a subject, write the profile of the one series. Raises InvalidInputError."""
    read = [each for each in points.read(paths, layers=layers) if series is None or series in each.name]
    if not read:
        raise InvalidInputError("--series", f"no series is named like {series!r}")
    aside = terminal.aside()
    for each in read:
        odd = of_steps(each.name, [point.seconds for point in each.points])
        if odd is not None:
            aside.print(f"[bold yellow]warning:[/] {escape(odd)}", soft_wrap=True, highlight=False)
    found = fits(read)
    show(found, aside if subject is not None else terminal.out())
    if subject is None:
        return 0
    if len(found) != 1:
        raise InvalidInputError("--series", f"a profile is of one series, found {len(found)}: name one")
    if kv_tokens is None:
        raise InvalidInputError("--kv-tokens", "needed for a profile; vLLM prints it as 'GPU KV cache size'")
    (_, only), *_ = found
    latency = fitted_latency(
        only, kv_tokens=kv_tokens, max_running=subject.max_running, max_batched_tokens=max_batched_tokens
    )
    if not math.isfinite(latency.error):
        raise InvalidInputError("points", "too few sizes to leave any out, so the error is unknown: measure more")
    document = manifest(
        subject,
        ProfileSource.ESTIMATED,
        confidence=_confidence(latency.error),
        latency=latency,
    )
    note = (
        f"Fitted by medley profile fit to {only.sizes} sizes of steps; error: that which 9 of 10 sizes left out stay "
        "within.\nsource is Estimated, since whole requests were not measured."
    )
    if not only.context_known:
        note += f"\nOne context ({only.largest_context_tokens} tokens) was measured; others are extrapolated."
    sys.stdout.write(written(document, out, note=note))
    return 0


def _confidence(error: float) -> Confidence:
    return Confidence.HIGH if error <= _HIGH else Confidence.MEDIUM if error <= _MEDIUM else Confidence.LOW
