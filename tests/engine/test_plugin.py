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


def installable(vllm, name):
    """A patch module that notes its installation."""
    done = []
    vllm(name, install=lambda: done.append(name))
    return done


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


def test_what_fits_is_installed_and_what_does_not_is_left_out(vllm, monkeypatch, tmp_path):
    vllm("vllm.part", step=lambda state, now: None)
    one, two = installable(vllm, "fake.one"), installable(vllm, "fake.two")
    fits, differs = (Symbol("vllm.part", "step", parameters) for parameters in ("state now", "state time"))
    capability = plugin.Capability.RESUME_EXACT
    monkeypatch.setattr(
        plugin, "PATCHES", (plugin.Patch("fake.one", (fits,), capability), plugin.Patch("fake.two", (differs,)))
    )
    monkeypatch.setenv("MEDLEY_PLUGIN_REPORTS", str(tmp_path))
    plugin.register()
    assert (one, two) == (["fake.one"], [])
    assert reports.capabilities(tmp_path) == ("resume-exact",)
    assert reports.complaints(tmp_path) == (
        "fake.two is disabled: vllm.part.step takes (state, now), not (state, time, ...)"
    )


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
    done = installable(vllm, "fake.one")
    monkeypatch.setattr(plugin, "PATCHES", (plugin.Patch("fake.one", (), plugin.Capability.RESUME_EXACT),))
    monkeypatch.setenv("MEDLEY_PLUGIN_REPORTS", str(tmp_path))
    plugin.register()
    assert done == []
    assert reports.capabilities(tmp_path) == ()
    assert why in reports.complaints(tmp_path)


def test_a_capability_counts_only_if_every_process_has_it(tmp_path):
    assert reports.capabilities(tmp_path) == ()
    for pid, capabilities in ((1, ["resume-exact"]), (2, ["resume-exact", "x"])):
        (tmp_path / f"{pid}.json").write_text(json.dumps({"capabilities": capabilities, "disabled": []}))
    assert reports.capabilities(tmp_path) == ("resume-exact",)
    (tmp_path / "3.json").write_text(json.dumps({"capabilities": [], "disabled": ["why"]}))
    assert (reports.capabilities(tmp_path), reports.complaints(tmp_path)) == ((), "why")
    reports.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
