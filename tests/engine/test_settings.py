"""The pod's environment is checked, and each complaint names its variable."""

from pathlib import Path

import pytest

from medley.core.errors import InvalidInputError
from medley.engine.policy import Limits
from medley.engine.settings import Settings


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("abc123\n")
    return str(path)


def test_defaults_are_those_of_a_pod(key_file):
    assert Settings.read({"MEDLEY_KEY_FILE": key_file}) == Settings(
        key="abc123", limits=Limits(), bind_host="0.0.0.0", engine_port=8000, control_port=8001, status_port=8002
    )


def test_everything_can_be_set(key_file):
    read = Settings.read({
        "MEDLEY_KEY_FILE": key_file, "MEDLEY_GRACE": "600", "MEDLEY_STALL_LIMIT": "30.5", "MEDLEY_RESTART_LIMIT": "1",
        "MEDLEY_START_LIMIT": "2", "MEDLEY_STOP_LIMIT": "0", "MEDLEY_PROBE_INTERVAL": "5", "MEDLEY_BIND_HOST": "::",
        "MEDLEY_ENGINE_PORT": "1", "MEDLEY_CONTROL_PORT": "2", "MEDLEY_STATUS_PORT": "65535", "MEDLEY_TLS_DIR": "/tls",
    })  # fmt: skip
    limits = Limits(grace_s=600, stall_s=30.5, restart_s=1, start_s=2, stop_s=0, probe_every_s=5)
    assert read == Settings("abc123", limits, "::", 1, 2, 65535, Path("/tls"))
    assert read.engine_host == "::1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDLEY_KEY_FILE", "/nowhere"),
        ("MEDLEY_KEY_FILE", ""),
        ("MEDLEY_GRACE", "soon"),
        ("MEDLEY_GRACE", "nan"),
        ("MEDLEY_GRACE", "inf"),
        ("MEDLEY_STALL_LIMIT", "-1"),
        ("MEDLEY_ENGINE_PORT", "0"),
        ("MEDLEY_CONTROL_PORT", "65536"),
        ("MEDLEY_STATUS_PORT", "http"),
    ],
)
def test_nonsense_is_refused_by_name(key_file, name, value):
    with pytest.raises(InvalidInputError) as refused:
        Settings.read({"MEDLEY_KEY_FILE": key_file} | {name: value})
    assert refused.value.field == name


@pytest.mark.parametrize("content", [b"", b" \n", b"a b", b"\xff\xfe", "schl\u00fcssel".encode()])
def test_a_file_without_a_key_is_refused(tmp_path, content):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidInputError, match="MEDLEY_KEY_FILE"):
        Settings.read({"MEDLEY_KEY_FILE": str(tmp_path / "key")})
