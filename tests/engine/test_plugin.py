"""The plugin's self-test says which symbol changed, and then changes nothing."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from medley.engine import plugin, reports
from medley.engine.plugin.symbols import Symbol, differences


@pytest.fixture
def vllm(monkeypatch):
    """Modules in vLLM's place; returns a function that adds one."""

    def add(name: str, **content) -> ModuleType:
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    add("vllm", __version__="0.32.0")
    add("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: True))
    add("vllm.envs", VLLM_USE_V2_MODEL_RUNNER=None)
    add("vllm.triton_utils", HAS_TRITON=False)
    return add


def test_symbols_are_compared_by_name_and_parameters(vllm):
    class Request:
        def take(self, token_ids, more=None):
            pass

    vllm("vllm.part", Request=Request)
    assert differences([Symbol("vllm.part", "Request.take", "self token_ids")]) == []
    assert differences([
        Symbol("vllm.part", "Request.take", "self ids"),
        Symbol("vllm.part", "Request.give", "self"),
        Symbol("vllm.nowhere", "Request", ""),
    ]) == [
        "vllm.part.Request.take takes (self, token_ids, more), not (self, ids, ...)",
        "vllm.part has no Request.give",
        "vllm.nowhere cannot be imported (No module named 'vllm.nowhere'; 'vllm' is not a package)",
    ]  # fmt: skip


EXACT = plugin.Capability.RESUME_EXACT
FITS, DIFFERS = Symbol("vllm.part", "step", "state now"), Symbol("vllm.part", "step", "state time")
COMPLAINT = "vllm.part.step takes (state, now), not (state, time, ...)"
ONE, TWO = "fake.one", "fake.two"


@pytest.mark.parametrize(
    "case",
    [
        ([plugin.Patch(ONE, (FITS,), EXACT), plugin.Patch(TWO, (DIFFERS,))], True, [ONE],
         {"capabilities": ["resume-exact"], "disabled": [f"fake.two is disabled: {COMPLAINT}"]}),
        ([plugin.Patch(ONE, (FITS,), EXACT), plugin.Patch(TWO, (DIFFERS,), EXACT)], True, [ONE],
         {"capabilities": [], "disabled": [f"fake.two is disabled: {COMPLAINT}"]}),
        ([plugin.Patch(ONE, (FITS,), EXACT), plugin.Patch(TWO, (FITS,), EXACT, front_end=True)], True, [ONE, TWO],
         {"capabilities": ["resume-exact"], "disabled": []}),
        ([plugin.Patch(ONE, (DIFFERS,), EXACT), plugin.Patch(TWO, (FITS,), EXACT, front_end=True)], False, [TWO],
         {"capabilities": ["resume-exact"], "disabled": []}),
    ],
    ids=["another differs", "one of two parts differs", "an engine installs all", "the API server its own part"],
)  # fmt: skip
def test_what_fits_is_installed_and_what_does_not_is_left_out(vllm, monkeypatch, tmp_path, case):
    patches, engine, installed, report = case
    vllm("vllm.part", step=lambda state, now: None)
    done = []
    for name in (ONE, TWO):
        vllm(name, install=lambda name=name: done.append(name))
    monkeypatch.setattr(plugin, "PATCHES", tuple(patches))
    monkeypatch.setattr(plugin, "parent_process", lambda: object() if engine else None)
    monkeypatch.setenv("MEDLEY_PLUGIN_REPORTS", str(tmp_path))
    plugin.register()
    assert done == installed
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text()) == report


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("vllm", {"__version__": "0.33.1"}), "vLLM 0.33.1 is not one of the tested 0.32.x"),
        (("vllm.platforms", {"current_platform": SimpleNamespace(is_cpu=lambda: False)}), "not yet measured on this platform"),
        (("vllm.envs", {"VLLM_USE_V2_MODEL_RUNNER": True}), "Model Runner V2"),
        (("vllm.triton_utils", {"HAS_TRITON": True}), "Model Runner V2"),
    ],
    ids=["version", "platform", "runner", "triton"],
)  # fmt: skip
def test_where_nothing_was_measured_nothing_is_changed(vllm, monkeypatch, tmp_path, change, why):
    vllm(change[0], **change[1])
    done = []
    vllm(ONE, install=lambda: done.append(ONE))
    monkeypatch.setattr(plugin, "PATCHES", (plugin.Patch(ONE, (), EXACT, front_end=True),))
    monkeypatch.setenv("MEDLEY_PLUGIN_REPORTS", str(tmp_path))
    plugin.register()
    assert done == []
    assert reports.capabilities(tmp_path) == ()
    assert why in reports.complaints(tmp_path)


def test_a_capability_counts_only_if_every_process_has_it(tmp_path):
    (tmp_path / "1.json").write_text(json.dumps({"capabilities": ["resume-exact"], "disabled": []}))
    assert reports.capabilities(tmp_path) == ()  # the API server alone is no engine
    for pid, capabilities in ((1, ["resume-exact"]), (2, ["resume-exact", "x"])):
        (tmp_path / f"{pid}.json").write_text(json.dumps({"capabilities": capabilities, "disabled": []}))
    assert reports.capabilities(tmp_path) == ("resume-exact",)
    (tmp_path / "3.json").write_text(json.dumps({"capabilities": [], "disabled": ["why"]}))
    assert (reports.capabilities(tmp_path), reports.complaints(tmp_path)) == ((), "why")
    reports.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
