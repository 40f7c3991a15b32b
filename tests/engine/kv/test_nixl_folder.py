"""Where NIXL comes from, with an installer that writes a package of the same shape."""

import sys

import pytest

from e2e import nixl
from e2e.nixl import NoNixlError, ensure_nixl

BINDINGS = """
nixlAgentConfig = dict
class nixlAgent:
    def __init__(self, name, config): pass
    def getAvailPlugins(self): return {plugins!r}
"""
INSTALLER = """#!{python}
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--target") + 1], "nixl")
folder.mkdir()
folder.joinpath("__init__.py").touch()
folder.joinpath("_bindings.py").write_text({bindings!r})
pathlib.Path({log!r}).open("a").write(" ".join(sys.argv[-2:]) + "\\n")
sys.exit({code!r})
"""


@pytest.fixture
def installing(tmp_path, monkeypatch):
    """Return a function that says what the installer does; its result reads what was installed."""
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDLEY_VLLM_PYTHON", sys.executable)
    monkeypatch.delenv(nixl.ENVIRONMENT_VARIABLE, raising=False)
    program, log = tmp_path / "uv", tmp_path / "log"
    log.touch()

    def does(plugins=("UCX",), code=0):
        bindings = BINDINGS.format(plugins=list(plugins))
        program.write_text(INSTALLER.format(python=sys.executable, bindings=bindings, log=str(log), code=code))
        program.chmod(0o755)
        monkeypatch.setattr(nixl, "installer", lambda: str(program))
        return lambda: log.read_text().splitlines()

    return does


def test_it_is_installed_once(installing):
    installed = installing()
    folder = ensure_nixl()
    assert ensure_nixl() == folder
    assert (folder.name, installed()) == (
        f"nixl-1.5.1-{sys.implementation.cache_tag}", ["nixl==1.5.1 nixl-cu13==1.5.1"],
    )  # fmt: skip
    assert sorted(each.name for each in folder.parent.iterdir()) == ["locks", folder.name]


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ({"code": "no wheel for this platform"}, "NIXL: installing: no wheel for this platform"),
        ({"plugins": ["POSIX"]}, "expected the plugin UCX, found POSIX"),
        ({"plugins": []}, "expected the plugin UCX, found none"),
    ],
    ids=["not to be had", "another build", "no plugins"],
)
def test_what_does_not_work_is_told_in_a_line_and_not_kept(installing, tmp_path, does, said):
    installing(**does)
    with pytest.raises(NoNixlError) as raised:
        ensure_nixl()
    assert str(raised.value).endswith(said)
    assert "\n" not in str(raised.value)
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["locks"]


def test_a_named_folder_is_taken_if_it_works(installing, tmp_path, monkeypatch):
    installing()
    folder = ensure_nixl()
    monkeypatch.setenv(nixl.ENVIRONMENT_VARIABLE, str(folder))
    assert ensure_nixl() == folder
    monkeypatch.setenv(nixl.ENVIRONMENT_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(NoNixlError, match="No module named 'nixl'"):
        ensure_nixl()
