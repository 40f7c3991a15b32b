import json
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.stage.pki import ADMIN, Authority, Identity

SERVER = "https://127.0.0.1:6443"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "pki")
    made.establish()
    return made


def test_two_that_ask_at_once_get_one_key_that_fits_its_certificate(authority: Authority) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: authority.kubeconfig("proxy", Identity("system:kube-proxy"), SERVER), range(4)))
    assert len(set(paths)) == 1
    ssl.create_default_context().load_cert_chain(authority.path("proxy.crt"), authority.path("proxy.key"))


def test_establishing_twice_changes_nothing(authority: Authority) -> None:
    before = authority.certificate.read_bytes()
    authority.establish()
    assert authority.certificate.read_bytes() == before


def test_a_name_longer_than_a_certificate_allows_is_lent_one(authority: Authority) -> None:
    authority.kubeconfig("admin", ADMIN, SERVER)
    node = Identity("system:node:" + "x" * 100, ("system:nodes",))
    (user,) = json.loads(authority.kubeconfig("node", node, SERVER, lent_by="admin").read_text())["users"]
    assert (user["user"]["as"], user["user"]["as-groups"]) == (node.user, ["system:nodes"])
    assert not (authority.folder / "node.crt").exists()
