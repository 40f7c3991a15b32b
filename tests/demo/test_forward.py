"""A forwarded port: what kubectl says is understood, and kubectl ends with the block."""

import sys
from pathlib import Path

import pytest

from e2e.demo.cluster import Cluster, CommandError
from e2e.demo.forward import Forward


def cluster(folder, *lines):
    """A cluster whose kubectl is a script of these lines of Python."""
    program = folder / "kubectl"
    program.write_text("\n".join((f"#!{sys.executable} -u", "import signal, sys", *lines)))
    program.chmod(0o755)
    return Cluster(Path("/kubeconfig"), program, Path("/bin/false"))


LISTENS = "print('Forwarding from 127.0.0.1:40123 -> 8080')"


async def test_the_port_is_the_one_that_kubectl_chose(tmp_path):
    script = cluster(
        tmp_path, "open(sys.argv[0] + '.args', 'w').write(' '.join(sys.argv[1:]))", LISTENS, "signal.pause()"
    )
    async with Forward(script, "team", "service/chat-router", 8080) as forward:
        assert forward.url == "http://127.0.0.1:40123"
        assert forward.ended is None
    assert forward.ended is not None
    assert (tmp_path / "kubectl.args").read_text() == (
        "--kubeconfig /kubeconfig port-forward --namespace team --address 127.0.0.1 service/chat-router :8080"
    )


async def test_kubectls_words_are_told_when_it_does_not_listen(tmp_path):
    script = cluster(tmp_path, "print('error: no such pod', file=sys.stderr)", "sys.exit(1)")
    with pytest.raises(CommandError, match=r"^kubectl port-forward team/pod/gone: error: no such pod$"):
        async with Forward(script, "team", "pod/gone", 8080):
            pass


async def test_it_is_known_when_it_ended_and_why_however_many_connections_it_told_of(tmp_path):
    script = cluster(
        tmp_path,
        LISTENS,
        "for _ in range(20_000): print('Handling connection for 40123')",  # more than a pipe holds
        "print('error: lost connection to pod', file=sys.stderr)",
    )
    async with Forward(script, "team", "pod/router", 8080) as forward:
        assert forward._drain is not None
        await forward._drain
        assert forward._process is not None
        await forward._process.wait()
        assert forward.ended == "error: lost connection to pod"
