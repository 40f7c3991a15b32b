from pathlib import Path

import pytest

from e2e.stage import build, versions


@pytest.mark.parametrize(
    ("package", "name"),
    [("go.etcd.io/etcd/server/v3", "server"), ("k8s.io/kubernetes/cmd/kubelet", "kubelet"), (".", ".")],
)
def test_go_names_a_program_after_its_package(package: str, name: str) -> None:
    assert build.compiled_name(package) == name


def test_kubernetes_is_built_with_its_staging_modules_by_version() -> None:
    upstream = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tother => elsewhere v1\n)\n"
    assert build.kubernetes_go_mod(upstream, "1.36.3") == (
        "module medley.dev/stage\n\ngo 1.26.0\n\ngodebug default=go1.26\n\ntool (\n"
        + "".join(f"\t{package}\n" for package in versions.KUBERNETES_TOOL.packages)
        + ")\n\nrequire k8s.io/kubernetes v1.36.3\n\nreplace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n"
    )


def test_a_half_finished_build_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path))
    (tmp_path / "bin" / "etcd-3.6.8.partial").mkdir(parents=True)
    assert build.missing([versions.ETCD_TOOL]) == ["etcd-3.6.8"]
    (tmp_path / "bin" / "etcd-3.6.8").mkdir()
    assert build.missing([versions.ETCD_TOOL]) == []


def test_every_tool_names_one_binary_per_package() -> None:
    assert [len(tool.packages) - len(tool.binaries) for tool in versions.UPSTREAM_TOOLS] == [0] * 5
