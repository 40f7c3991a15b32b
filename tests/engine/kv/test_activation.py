"""Live does not start where KV cannot be carried; Auto starts without, and says why."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from medley.core.errors import EngineError, InvalidInputError
from medley.core.service import MigrationMode as Mode
from medley.engine.command import environment
from medley.engine.entry_point import allowed_plugins, write_entry_point
from medley.engine.kv import activation
from medley.engine.kv.activation import STANDING, activate
from medley.engine.plugin.symbols import Symbol

FITS = Symbol("vllm.part", "step", "state now", "update")
CHANGED = "vllm.part.step takes (state, now), not (state, time, ...)"


class Arguments:
    """As vLLM's EngineArgs, what matters of it."""

    def __init__(self, transfer=None):
        self.kv_transfer_config = transfer

    def create_engine_config(self, usage_context=None):
        return self.kv_transfer_config


@pytest.fixture
def vllm(monkeypatch):
    def add(name: str, **content) -> None:
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)

    def step(state, now):
        state.update(now)

    add("vllm")
    add("vllm.part", step=step)
    add("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: True))
    add("vllm.config", KVTransferConfig=SimpleNamespace)
    add("vllm.engine")
    add("vllm.engine.arg_utils", EngineArgs=type("EngineArgs", (Arguments,), {}))
    monkeypatch.setattr(activation, "SYMBOLS", (FITS,))
    before = (STANDING.mode, STANDING.reason)
    yield add
    STANDING.mode, STANDING.reason = before


def configured(transfer=None):
    return sys.modules["vllm.engine.arg_utils"].EngineArgs(transfer).create_engine_config()


@pytest.mark.parametrize("mode", ["Live", "Auto"])
def test_vllm_gets_the_connector_and_recomputes_what_fails(vllm, mode):
    for _ in range(2):  # vLLM may call the plugin again
        activate("", {"MEDLEY_MIGRATION": mode})
    assert configured() == SimpleNamespace(
        kv_connector="MedleyConnector",
        kv_connector_module_path="medley.engine.kv.connector",
        kv_role="kv_both",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={"mode": mode},
    )
    assert (STANDING.mode, STANDING.reason) == (Mode(mode), "")


def test_nothing_is_changed_where_nothing_is_asked(vllm):
    for variables in ({}, {"MEDLEY_MIGRATION": "Resume"}):
        activate("", variables)
        assert configured() is None
        assert (STANDING.mode, STANDING.reason) == (Mode.RESUME, "MEDLEY_MIGRATION is Resume")


def test_another_word_is_refused_by_name(vllm):
    with pytest.raises(InvalidInputError, match="MEDLEY_MIGRATION: expected Auto, Live, Resume, got 'on'"):
        activate("", {"MEDLEY_MIGRATION": "on"})


@pytest.mark.parametrize(
    ("refusal", "symbols", "said"),
    [
        ("vLLM 0.33.1 is not one of the tested 0.32.x", (FITS,), "vLLM 0.33.1 is not one of the tested"),
        ("", (Symbol("vllm.part", "step", "state time"),), CHANGED),
        ("", (Symbol("vllm.part", "stop"),), "vllm.part has no stop"),
        ("", (Symbol("vllm.part", "step", "state", "update commit"),), "vllm.part.step does not use commit"),
        ("", (Symbol("vllm.gone", "step"),), "vllm.gone cannot be imported"),
    ],
    ids=["version", "parameters", "a name", "what it does", "a module"],
)
def test_another_vllm_is_told_by_what_changed(vllm, monkeypatch, refusal, symbols, said):
    monkeypatch.setattr(activation, "SYMBOLS", symbols)
    with pytest.raises(EngineError, match="MEDLEY_MIGRATION=Live") as refused:
        activate(refusal, {"MEDLEY_MIGRATION": "Live"})
    assert said in str(refused.value)
    activate(refusal, {"MEDLEY_MIGRATION": "Auto"})
    assert configured() is None
    assert STANDING.mode is Mode.RESUME
    assert said in STANDING.reason


def test_auto_carries_only_where_it_was_measured_and_live_wherever_it_is_asked_to(vllm):
    vllm("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: False))
    activate("", {"MEDLEY_MIGRATION": "Auto"})
    assert configured() is None
    assert STANDING.reason == "never measured on this platform; MEDLEY_MIGRATION=Live carries KV all the same"
    activate("", {"MEDLEY_MIGRATION": "Live"})
    assert configured().kv_connector == "MedleyConnector"


def test_a_connector_of_the_users_own_is_left_alone(vllm):
    theirs = SimpleNamespace(kv_connector="LMCacheConnectorV1")
    activate("", {"MEDLEY_MIGRATION": "Auto"})
    assert configured(theirs) is theirs
    assert (STANDING.mode, STANDING.reason) == (Mode.RESUME, "--kv-transfer-config names another connector")
    activate("", {"MEDLEY_MIGRATION": "Live"})
    with pytest.raises(EngineError, match="--kv-transfer-config"):
        configured(theirs)


def test_the_supervisor_asks_for_auto_unless_told_and_lets_the_plugin_in(tmp_path, monkeypatch):
    asked = environment({"PATH": "/bin"}, "k", tmp_path)
    assert asked["MEDLEY_MIGRATION"] == "Auto"
    assert environment({"MEDLEY_MIGRATION": "Live"}, "k", tmp_path)["MEDLEY_MIGRATION"] == "Live"
    assert asked["VLLM_PLUGINS"].split(",")[-2:] == ["medley", "medley_kv"]


def test_plugins_that_are_there_are_named_since_naming_keeps_others_out(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs-1.dist-info"
    theirs.mkdir()
    (theirs / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (theirs / "entry_points.txt").write_text(
        "[vllm.platform_plugins]\nnpu = a:b\n[vllm.endpoint_plugins]\nroutes = a:b\n[other]\nmore = a:b\n"
    )
    write_entry_point(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    named = allowed_plugins(None).split(",")
    assert "npu" in named  # it would have been loaded
    assert not {"routes", "more"} & set(named)  # these would not
    assert named.count("medley") == 1
    assert allowed_plugins("a,b") == "a,b,medley,medley_kv"
    assert allowed_plugins("") == "medley,medley_kv"  # somebody wanted none
