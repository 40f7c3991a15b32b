"""How far latency models and estimates are off, on step times that others published (MEDLEY_DATA; without it: no rows).

`python -m bench.profiles` prints the table of every series. Fit: the error of sizes that were left out. Estimate: the
roofline from data sheets against the same measurements, and against what single GPUs sustained in Mélange's appendix.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.rows import Row
from medley.cli.profile.catalogue import gpu
from medley.cli.profile.points import Series, read
from medley.core.workload import Slo
from medley.planning import mixture
from medley.planning.fit import Fit, StepPoint, fit, repeated
from medley.planning.mixture import Stream
from medley.planning.roofline import BEST, USUAL, WORST, Dtype, Efficiency, ModelShape, Roofline

DATA = Path(os.environ.get("MEDLEY_DATA") or Path(__file__).parents[2] / "shared" / "data") / "latency"
COMMAND = "MEDLEY_DATA=… make bench ONLY=profiles"


def _half(parameters: float, layers: int, hidden: int, kv_heads: int) -> ModelShape:
    return ModelShape(parameters, layers, hidden, kv_heads, 128, Dtype.FP16, Dtype.FP16)


def _full(layers: int, hidden: int) -> ModelShape:
    """Return a GPT of SpotServe's kind: 12 hidden² parameters per layer, float32 (their figures fit nothing else)."""
    return ModelShape(12.0 * hidden**2 * layers, layers, hidden, hidden // 128, 128, Dtype.FP32, Dtype.FP32)


# By the first word of a series' name. Sources: the models' config.json; papers.md for SpotServe's.
MODELS = {
    "llama1_30b": _half(32.5e9, 60, 6656, 52),
    "llama2_70b": _half(68.98e9, 80, 8192, 8),
    "llama2-70b": _half(68.98e9, 80, 8192, 8),
    "bloom-176b": _half(176.2e9, 70, 14336, 112),
    "megatron_6.7B_profile": _full(32, 4096),
    "megatron_h6144_profile": _full(44, 6144),
    "megatron_h7168_profile": _full(48, 7168),
    "6.7B": _full(32, 4096),
    "20B": _full(44, 6144),
}
# Helix says 40 GB of its A100, and 16 GB of its V100.
GPUS = {"a100": "a100-40gb", "a100-80gb": "a100-80gb", "h100-80gb": "h100", "l4": "l4", "t4": "t4", "v100": "v100"}
PROMPTS, BATCHES = (256, 4096), (1, 64)  # what is compared: prompts and batches as an engine meets them
LLAMA2_7B = _half(6.74e9, 32, 4096, 32)
# Mélange's appendix C (its single-GPU baselines): workload, bound on TPOT, GPU, requests/s of one GPU; and its mean
# sizes, which were read off figure 10 and are uncertain.
SIZES = {"arena": (329, 196), "pubmed": (4174, 314), "mixed": (1278, 220)}
PUBLISHED = (
    ("arena", 0.120, "h100", 4.00, 4.57),
    ("arena", 0.120, "l4", 0.492, 0.500),
    ("arena", 0.040, "h100", 4.57, 5.33),
    ("arena", 0.040, "l4", 0.237, 0.239),
    ("pubmed", 0.120, "a100-80gb", 0.302, 0.305),
    ("pubmed", 0.040, "h100", 0.571, 0.582),
    ("mixed", 0.120, "h100", 2.67, 2.91),
    ("mixed", 0.120, "a100-80gb", 1.60, 1.68),
    ("mixed", 0.040, "h100", 2.46, 2.67),
    ("mixed", 0.040, "a100-80gb", 1.33, 1.39),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """Estimated / measured of the steps of a series, and how many lie between the best and the worst estimate."""

    series: Series
    prompts: tuple[float, ...]
    decoding: tuple[float, ...]
    inside: int

    @property
    def all(self) -> tuple[float, ...]:
        """Of prompts and decoding."""
        return self.prompts + self.decoding


@lru_cache(maxsize=1)
def series() -> tuple[Series, ...]:
    """Return all published series, with the layers of their models where records are of one layer."""
    if not DATA.is_dir():
        return ()
    found = read([DATA / "splitwise" / "perf_model.csv"])
    for folder in sorted((DATA / "helix").iterdir()):
        if folder.is_dir():
            found += read([folder], layers=MODELS[folder.name].layers)
    for folder in sorted((DATA / "spotserve").iterdir()):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            known = MODELS.get(path.stem)
            found += read([path], layers=known.layers if known else 1)
    return found


@lru_cache(maxsize=1)
def fits() -> tuple[tuple[Series, Fit], ...]:
    """Return the fit of every series."""
    return tuple((each, fit(repeated(each.points))) for each in series())


def compared() -> Iterator[Compared]:
    """Yield the comparison of every series whose model and GPU are known; power-capped GPUs are left out."""
    for each in series():
        roofline = _roofline(each)
        if roofline is None:
            continue
        points = [p for p in repeated(each.points) if _usual(p) and not _impossible(roofline, p)]
        ratios = [(p, _linear(roofline, p) / p.seconds) for p in points]
        inside = sum(
            roofline.step_s(*p.size, efficiency=BEST) <= p.seconds <= _linear(roofline, p, WORST) for p in points
        )
        yield Compared(
            each,
            tuple(ratio for p, ratio in ratios if not p.sequences),
            tuple(ratio for p, ratio in ratios if p.sequences),
            inside,
        )


def _roofline(each: Series) -> Roofline | None:
    model, *rest = each.name.split()
    if model not in MODELS:
        return None
    if each.source == "helix":
        name, _, number = rest[0].partition("x")
        number = number or "1"
    elif each.source == "splitwise":
        name, number = rest[0], rest[1].removeprefix("tp")
    else:
        # Nodes of one T4 talk over the network, which no data sheet of a GPU describes.
        name, number = rest[0].partition("-")[0].lower(), rest[1].removeprefix("tp")
        if (rest[0] == "T4-1x" and number != "1") or int(number) > 4:  # GPUs of a node
            return None
    return Roofline(gpu(GPUS[name]), MODELS[model], int(number)) if name in GPUS else None


def _usual(point: StepPoint) -> bool:
    low, high = BATCHES if point.sequences else PROMPTS
    return low <= (point.sequences or point.prefill_tokens) <= high


def _impossible(roofline: Roofline, point: StepPoint) -> bool:
    """Say whether a step holds more than the GPUs' memory, so that it was run in parts."""
    held = roofline.kv_tokens()
    return bool(held) and point.context_tokens + point.prefill_tokens > held


def _linear(roofline: Roofline, point: StepPoint, efficiency: Efficiency = USUAL) -> float:
    """Return the step by the linear model, which plans use; the weights need not fit, as Helix timed single layers."""
    return math.fsum(
        each * count for each, count in zip(roofline.coefficients(efficiency), (1, *point.size), strict=True)
    )


def measure() -> Iterator[Row]:
    """Yield the errors of fits and of estimates, by source."""
    if not series():
        return
    for source in sorted({each.source for each, _ in fits()}):
        own = [found for each, found in fits() if each.source == source]
        count = f"{len(own)} series, {sum(each.points for each in own)} sizes"
        for kind, name in (("by_size_prefill", "prompts"), ("by_size_decode", "decoding")):
            errors = [getattr(each, kind) for each in own]
            yield Row(
                f"profiles/fit, {source}, {name}: error of sizes left out, median",
                100 * statistics.median(each.median for each in errors),
                "%",
                peer=f"90th percentile {100 * statistics.median(each.p90 for each in errors):.0f} %; {count}",
                command=COMMAND,
            )
    found = list(compared())
    for source in sorted({each.series.source for each in found}):
        own = [each for each in found if each.series.source == source]
        ratios = [ratio for each in own for ratio in each.all]
        yield Row(
            f"profiles/estimate, {source}: estimated over measured step, median",
            statistics.median(ratios),
            "x",
            peer=f"{min(ratios):.2f} to {max(ratios):.2f}; {sum(each.inside for each in own)} of {len(ratios)} steps "
            "between best and worst",
            command=COMMAND,
        )
    for workload, tpot_s, name, low, high in PUBLISHED:
        rate = melange_rate(workload, tpot_s, name)
        yield Row(
            f"profiles/estimate, Mélange, {workload} at {1e3 * tpot_s:g} ms on {name}",
            rate,
            "requests/s of one GPU",
            peer=f"published {low:g} to {high:g}",
            command=COMMAND,
        )


def melange_rate(workload: str, tpot_s: float, name: str) -> float:
    """Return the requests/s of mean size that one GPU carries with Llama 2 7B, by the usual estimate; 0: none."""
    model = Roofline(gpu(name), LLAMA2_7B).linear(max_running=256, max_batched_tokens=8192)
    mix = (Stream(*SIZES[workload], 1.0),)
    return mixture.capacity(model, Slo(50, None, timedelta(seconds=tpot_s)), mix) or 0.0


def main() -> None:
    """Print every series."""
    console = Console(width=150)
    table = Table("SOURCE", "SERIES", "FIT BY SIZE", "PROMPTS", "DECODING", "ESTIMATE: PROMPTS", "DECODING", "INSIDE")
    by_name = {(each.series.source, each.series.name): each for each in compared()}
    for each, found in fits():
        row = [f"{e.median:.1%} / {e.p90:.0%}" for e in (found.by_size, found.by_size_prefill, found.by_size_decode)]
        against = by_name.get((each.source, each.name))
        if against is not None:
            row += [
                f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})"
                for r in (against.prompts, against.decoding)
            ]
            row.append(f"{against.inside} of {len(against.all)}")
        table.add_row(each.source, each.name, *row)
    console.print(table)
    for row in measure():
        console.print(f"{row.name}: {row.value:.3g} {row.unit} ({row.peer})", highlight=False)


if __name__ == "__main__":
    main()
