"""The small parts: the alarm, the model's digest, where to listen."""

import queue
import time

import pytest

from medley.core.errors import InvalidInputError
from medley.core.identity import Role
from medley.engine.kv.alarm import Alarm
from medley.engine.kv.identity import model_digest, numerics_digest
from medley.engine.kv.network import Network
from medley.testing.certificates import Issuer


def test_an_alarm_rings_once_at_the_last_time_that_was_set():
    rung = queue.SimpleQueue()
    alarm = Alarm(lambda: rung.put(time.monotonic()), time.monotonic)
    try:
        begun = time.monotonic()
        alarm.set(begun + 1000)
        alarm.set(begun + 0.05)
        assert rung.get(timeout=10) >= begun + 0.05
        alarm.set(begun)  # long over
        rung.get(timeout=10)
        alarm.set(time.monotonic() + 0.05)
        alarm.set(None)
        with pytest.raises(queue.Empty):
            rung.get(timeout=0.2)
    finally:
        alarm.close()


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model-1.safetensors").write_bytes(bytes(range(256)) * 20_000)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 10)
    return tmp_path


def test_a_digest_tells_weights_and_configuration_apart_and_nothing_else(model):
    before = model_digest(model)
    (model / "tokenizer.json").write_text('{"changed": true}')
    (model / "README.md").write_text("words")
    assert model_digest(model) == before
    seen = {before}
    for name, change in (
        ("config.json", lambda file: file.write_text('{"hidden_size": 9}')),
        ("model-2.safetensors", lambda file: file.write_bytes(b"y" * 10)),
        ("model-2.safetensors", lambda file: file.write_bytes(b"y" * 11)),
        ("model-1.safetensors", lambda file: file.write_bytes(bytes(5_120_000))),
        ("model-2.safetensors", lambda file: file.rename(model / "model-3.safetensors")),
    ):
        change(model / name)
        seen.add(model_digest(model))
    assert len(seen) == 6
    assert model_digest(model / "model-1.safetensors") not in seen


def test_without_weights_nobody_can_say(model):
    for file in model.glob("*.safetensors"):
        file.unlink()
    assert model_digest(model) is None


def test_numerics_do_not_depend_on_the_order_of_facts():
    assert numerics_digest({"a": 1, "b": "x"}) == numerics_digest({"b": "x", "a": 1})
    assert numerics_digest({"a": 1, "b": "x"}) != numerics_digest({"a": 1, "b": "y"})


def test_without_certificates_it_is_loopback_and_in_a_pod_nothing(tmp_path):
    alone = Network.from_environment({})
    assert (alone.host, alone.listen, alone.client, alone.obstacle) == ("127.0.0.1", "127.0.0.1", None, "")
    pod = Network.from_environment({"KUBERNETES_SERVICE_HOST": "10.96.0.1"})
    assert pod.obstacle == "MEDLEY_TLS_DIR is not set: KV goes between pods by TLS only"
    broken = Network.from_environment({"MEDLEY_TLS_DIR": str(tmp_path)})
    assert broken.obstacle.startswith("MEDLEY_TLS_DIR")


def test_with_certificates_it_is_the_address_that_others_reach(tmp_path):
    folder = str(Issuer.new().folder(tmp_path / "tls", Role.ENGINE))
    named = Network.from_environment(
        {"MEDLEY_TLS_DIR": folder, "MEDLEY_KV_HOST": "10.1.2.3", "VLLM_HOST_IP": "10.9.9.9"}
    )
    assert (named.host, named.obstacle) == ("10.1.2.3", "")
    assert named.client is not None
    assert Network.from_environment({"MEDLEY_TLS_DIR": folder, "VLLM_HOST_IP": "10.9.9.9"}).host == "10.9.9.9"
    assert Network.from_environment({"MEDLEY_TLS_DIR": folder}).host


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf"])
def test_patience_is_seconds(text):
    assert Network.from_environment({"MEDLEY_KV_STALL": "7.5"}).stall_s == 7.5
    with pytest.raises(InvalidInputError, match="MEDLEY_KV_STALL: expected seconds"):
        Network.from_environment({"MEDLEY_KV_STALL": text})
