"""`medley profile fit` and `estimate`: files of every form to coefficients, to manifests that medley reads."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medley.api.convert import profile, read_performance_profile
from medley.cli import main
from medley.cli.profile import catalogue
from medley.cli.profile.manifest import Subject, object_name
from medley.cli.profile.points import read
from medley.core.errors import InvalidInputError
from medley.core.profiles import Confidence, ProfileSource
from medley.planning.fit import StepPoint, fit, repeated
from tests.conftest import DATA

DOCS = Path(__file__).parents[2] / "docs"
STEP, PREFILL, SEQUENCE, CONTEXT = 10.0, 0.1, 0.05, 0.0005  # milliseconds


def medley(*arguments: str):
    return CliRunner().invoke(main, ["profile", *arguments])


def own(path: Path) -> Path:
    rows = [(tokens, 0, 0) for tokens in (100, 500, 1000, 2000)]
    rows += [(0, batch, batch * context) for batch in (1, 8, 32) for context in (100, 2000)]
    lines = ["prefill_tokens,sequences,context_tokens,seconds"]
    for a, b, c in rows:
        lines.append(f"{a},{b},{c},{(STEP + PREFILL * a + SEQUENCE * b + CONTEXT * c) / 1000!r}")
    path.write_text("\n".join(lines) + "\n")
    return path


def splitwise(path: Path) -> Path:
    lines = ["model,hardware,prompt_size,batch_size,token_size,peak_power,prompt_time,token_time,tensor_parallel"]
    for prompt, batch, output in [(128, 1, 128), (512, 1, 1024), (512, 4, 128), (2048, 1, 128)]:
        first = STEP + PREFILL * prompt * batch
        each = STEP + SEQUENCE * batch + CONTEXT * batch * (prompt + output // 2)
        lines += [f"m,{gpu},{prompt},{batch},{output},0,{first * k},{each * k},2" for gpu, k in (("a", 1), ("b", 2))]
    path.write_text("\n".join(lines) + "\n")
    return path


def helix(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "prompt_bs2time.csv").write_text(
        "0,0\n" + "".join(f"{n},{STEP + PREFILL * n:.1f}\n" for n in (100, 1000))
    )
    (folder / "decode_bs2time.csv").write_text("0,0\n" + "".join(f"{n},{STEP + SEQUENCE * n:.1f}\n" for n in (2, 100)))
    return folder


def spotserve(path: Path) -> Path:
    times = {
        f"bsz-{b}": {"init": STEP + PREFILL * 512 * b, "incr": STEP + (SEQUENCE + CONTEXT * 576) * b} for b in (1, 2, 4)
    }
    path.write_text(json.dumps({"name": "m", "embed": [1], "tp-1": times, "tp-4": times}))
    return path


def milliseconds(found):
    return tuple(
        pytest.approx(1000 * each, rel=1e-3)
        for each in (found.step_s, found.per_prefill_token_s, found.per_sequence_s, found.per_context_token_s)
    )


def test_own_form(tmp_path):
    (series,) = read([own(tmp_path / "steps.csv")])
    assert (series.source, series.name, len(series.points)) == ("own", "steps", 10)
    assert milliseconds(fit(series.points)) == (STEP, PREFILL, SEQUENCE, CONTEXT)


def test_splitwise_form(tmp_path):
    first, second = read([splitwise(tmp_path / "perf_model.csv")])
    assert (first.name, second.name) == ("m a tp2", "m b tp2")
    assert milliseconds(fit(repeated(first.points))) == (STEP, PREFILL, SEQUENCE, CONTEXT)
    assert milliseconds(fit(repeated(second.points))) == (2 * STEP, 2 * PREFILL, 2 * SEQUENCE, 2 * CONTEXT)


def test_helix_form(tmp_path):
    helix(tmp_path / "llama" / "l4")
    (series,) = read([tmp_path], layers=3)
    assert (series.source, series.name) == ("helix", "llama l4")
    assert series.points[0] == StepPoint(100, 0, 0, 3 * 0.020, pytest.approx(3 * 0.00005))
    found = fit(series.points)
    assert not found.context_known
    assert milliseconds(found)[:3] == (3 * STEP, 3 * PREFILL, 3 * SEQUENCE)


def test_spotserve_form_among_other_files(tmp_path):
    spotserve(tmp_path / "gpt.json")
    (tmp_path / "published.json").write_text("[1]")
    one, four = read([tmp_path])
    assert (one.name.split()[0], one.name.split()[-1], four.name.split()[-1]) == ("gpt", "tp1", "tp4")
    assert milliseconds(fit(one.points))[:2] == (STEP, PREFILL)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "x,y\n1,2\n", "expected a CSV file with the header prefill_tokens,sequences"),
        ("a.csv", "prefill_tokens,sequences,context_tokens,seconds\n1,0,0,fast\n", "line 2: expected four numbers"),
        ("a.csv", "prefill_tokens,sequences,context_tokens,seconds\n1,0,0,-1\n", "expected a time above 0 s"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "expected JSON with tp-1"),
        ("a.csv", "", "expected a CSV file with the header"),
    ],
)
def test_files_of_no_known_form_are_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        read([tmp_path / name])


def test_a_folder_without_any_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="holds no step times"):
        read([tmp_path])


def test_errors_are_shown_by_series_and_by_source(tmp_path):
    result = medley("fit", str(own(tmp_path / "steps.csv")))
    assert result.exit_code == 0
    assert "steps" in result.stdout
    assert "BY SIZE" in result.stdout


def test_a_fit_becomes_a_profile(tmp_path):
    path = tmp_path / "profile.yaml"
    arguments = [
        "--model",
        "acme/Model-7B",
        "--class",
        "l4",
        "--tp",
        "2",
        "--kv-tokens",
        "50000",
        "--max-running",
        "64",
    ]
    result = medley("fit", str(own(tmp_path / "steps.csv")), *arguments, "--out", str(path))
    assert result.exit_code == 0, result.stderr
    assert path.read_text() == result.stdout
    found = profile(read_performance_profile(yaml.safe_load(result.stdout)))
    assert (found.name, str(found.shape), found.source) == ("model-7b-l4-tp2", "l4-tp2", ProfileSource.ESTIMATED)
    assert found.confidence is Confidence.HIGH
    assert found.latency.model.step_s == pytest.approx(STEP / 1000, rel=1e-3)
    assert (found.latency.model.kv_tokens, found.latency.model.max_running) == (50_000, 64)
    assert (found.latency.largest_prefill_tokens, found.latency.largest_sequences) == (2000, 32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "m"], "--class: needed for a profile"),
        (["--model", "m", "--class", "l4"], "--kv-tokens: needed for a profile"),
        (["--series", "none like it"], "--series: no series is named like"),
        (["--model", "m", "--class", "l4", "--kv-tokens", "100"], "kvTokens is below maxModelLen 4096"),
    ],
)
def test_what_is_missing_for_a_profile_is_named(tmp_path, arguments, words):
    result = medley("fit", str(own(tmp_path / "steps.csv")), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


LLAMA = ["--model", "meta-llama/Llama-3.1-8B", "--parameters", "8.03", "--layers", "32"]
LLAMA += ["--hidden", "4096", "--kv-heads", "8"]


def test_estimates_of_all_gpus_that_hold_the_model():
    result = medley("estimate", *LLAMA)
    assert result.exit_code == 0, result.stderr
    found = [profile(read_performance_profile(each)) for each in yaml.safe_load_all(result.stdout)]
    held = ["l4", "a10g", "l40s", "a100-40gb", "a100-80gb", "h100", "h200", "b200", "mi300x"]
    assert [each.shape.accelerator_class for each in found] == held
    assert {(each.source, each.confidence) for each in found} == {(ProfileSource.ESTIMATED, Confidence.LOW)}
    assert "t4 does not multiply in bfloat16" in " ".join(result.stderr.split())
    by_class = {each.shape.accelerator_class: each.latency for each in found}
    assert by_class["h100"].model.step_s < by_class["a100-80gb"].model.step_s < by_class["l4"].model.step_s
    assert all(each.error > 0.2 for each in by_class.values()), "a data sheet is no measurement"


def test_an_estimate_of_one_gpu_that_cannot_hold_it_is_an_error():
    result = medley("estimate", *LLAMA, "--dtype", "float16", "--gpu", "t4")
    assert result.exit_code == 2
    assert "--tp: 16 GB of weights do not fit 1 x t4 (12 GB usable): raise it, or" in result.stderr
    assert medley("estimate", *LLAMA, "--dtype", "float16", "--gpu", "t4", "--tp", "2").exit_code == 0
    assert "no GPU t5 in the catalogue; there are t4, l4" in medley("estimate", *LLAMA, "--gpu", "t5").stderr


def test_the_figures_of_every_gpu_have_sources_and_agree():
    entries = catalogue.entries()
    assert list(entries) == [
        "t4",
        "l4",
        "a10g",
        "l40s",
        "v100",
        "a100-40gb",
        "a100-80gb",
        "h100",
        "h200",
        "b200",
        "mi300x",
    ]
    for entry in entries.values():
        # Dense rates: where there are both, fp8 is twice half precision.
        rates = {dtype.value: rate for dtype, rate in entry.teraflops.items()}
        if "fp8" in rates:
            assert rates["fp8"] == pytest.approx(2 * rates["bfloat16"], rel=0.02)


def test_what_nobody_looked_up_is_said_where_people_read_it():
    unconfirmed = {name: entry.unconfirmed for name, entry in catalogue.entries().items() if entry.unconfirmed}
    assert unconfirmed == {"a10g": ("float32", "float16", "bfloat16", "linkGBPerSecond")}
    assert "# Not confirmed: float32, float16, bfloat16, linkGBPerSecond\n" in medley("estimate", *LLAMA).stdout
    assert "Not confirmed: A10G's" in (DOCS / "profiles.md").read_text()


def test_an_estimate_says_how_it_was_made_and_can_be_made_again():
    first = medley("estimate", *LLAMA, "--gpu", "l4", "--gpu", "h100", "--tp", "2").stdout
    command = first.splitlines()[0].removeprefix("# ")
    assert "--tp 2" in command
    assert medley(*shlex.split(command)[2:]).stdout == first


def test_parameters_in_full_are_refused_with_the_number_to_write():
    result = medley("estimate", *LLAMA, "--parameters", "8030000000")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --parameters: is in billions: write 8.03 for 8,030,000,000 parameters\n",
    )


def test_for_how_long_requests_an_estimate_is_is_said():
    said = "note: for services whose spec.model.maxModelLen is at most 4,096 (--max-model-len)"
    assert said in medley("estimate", *LLAMA, "--gpu", "l4").stderr


FIGURES = """
- name: x
  product: X
  memoryGiB: 10
  bandwidthGBPerSecond: 1
  teraflops: {float16: 1}
  link: none
  linkGBPerSecond: 1
  sources: [{figures: [memoryGiB, bandwidthGBPerSecond, linkGBPerSecond%s], document: a sheet}]
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FIGURES % "", "x: give float16 one source each"),
        (FIGURES % ", float16, fp8", "x: give fp8 one source each"),
        (FIGURES % ", float16, float16", "x: give float16 one source each"),
        ("- {name: x}", "product"),
        ("nonsense", "valid list"),
        ("[", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_catalogue_of_ones_own_is_checked(tmp_path, text, words):
    path = tmp_path / "gpus.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        catalogue.entries(path)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3-1-8b-l4"),
        ("/models/Ünïcode__x", "n-code-x-l4"),
        ("---", "model-l4"),
        ("m" * 300, "m" * 250 + "-l4"),
    ],
)
def test_names_are_ones_that_kubernetes_takes(model, name):
    assert object_name(Subject(model, "l4", 4096, 64)) == name


@pytest.mark.data
def test_published_step_times_are_read_and_fitted():
    latency = DATA / "latency"
    series = read([latency / "helix", latency / "splitwise" / "perf_model.csv", latency / "spotserve"])
    sources = [each.source for each in series]
    assert (sources.count("helix"), sources.count("splitwise"), sources.count("spotserve")) == (14, 12, 63)
    by_name = {each.name: each for each in series}
    # Records of kernels are linear; of whole engines decoding is, prompts are so within a factor.
    assert fit(repeated(by_name["llama1_30b l4"].points)).by_size.p90 < 0.1
    engine = fit(repeated(by_name["llama2-70b h100-80gb tp4"].points))
    assert engine.by_size_decode.median < 0.05
    assert 0.1 < engine.by_size_prefill.p90 < 1
