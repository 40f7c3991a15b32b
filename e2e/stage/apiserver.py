"""A real Kubernetes API server with etcd (and, if wanted, the controller manager) for tests: up in seconds.

    with ControlPlane() as plane:
        plane.apply(Path("crds"))
        kubeconfig = plane.kubeconfig                    # the administrator's
        limited = plane.kubeconfig_as(Identity("system:serviceaccount:medley:medley", ()))

Used by tests (marker `apiserver`) and, for the arguments, by `cluster`. Each plane has its own folder and
ports of loopback, so that any number run side by side. The processes die with the thread that entered the
block: enter it from the main thread.
"""

import ipaddress
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e.stage import paths
from e2e.stage.build import build
from e2e.stage.pki import ADMIN, Authority, Identity
from e2e.stage.processes import StageError, run
from e2e.stage.progress import Board
from e2e.stage.versions import CONTROL_PLANE_TOOLS, ETCD_TOOL, KUBERNETES_TOOL

CONTROLLER_MANAGER = Identity("system:kube-controller-manager")
SCHEDULER = Identity("system:kube-scheduler")
KUBELET_CLIENT = Identity("stage:apiserver", ("system:masters",))


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the control plane listens: the API server's address and port, etcd's ports (always on loopback)."""

    host: str
    port: int
    etcd: int
    etcd_peers: int
    services: str = "10.96.0.0/16"

    @property
    def server(self) -> str:
        return f"https://{self.host}:{self.port}"

    @property
    def as_service(self) -> str:
        """The address by which pods reach the API server: the first of the services' range."""
        return str(next(ipaddress.ip_network(self.services).hosts()))


def etcd_command(data: Path, addresses: Addresses) -> list[str]:
    """Return the command of etcd; without fsync, since the stage does not outlive the machine."""
    clients, peers = f"http://127.0.0.1:{addresses.etcd}", f"http://127.0.0.1:{addresses.etcd_peers}"
    return [
        str(paths.program(ETCD_TOOL, "etcd")),
        *("--data-dir", str(data), "--unsafe-no-fsync", "--log-level", "warn"),
        *("--listen-client-urls", clients, "--advertise-client-urls", clients),
        *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"),
    ]


def apiserver_command(authority: Authority, addresses: Addresses, *options: str) -> list[str]:
    """Return the command of kube-apiserver; `options` come last."""
    return [
        str(paths.program(KUBERNETES_TOOL, "kube-apiserver")),
        f"--etcd-servers=http://127.0.0.1:{addresses.etcd}",
        f"--bind-address={addresses.host}",
        f"--secure-port={addresses.port}",
        f"--advertise-address={addresses.host}",
        f"--tls-cert-file={authority.path('apiserver.crt')}",
        f"--tls-private-key-file={authority.path('apiserver.key')}",
        f"--client-ca-file={authority.path('ca.crt')}",
        f"--kubelet-client-certificate={authority.path('kubelet-client.crt')}",
        f"--kubelet-client-key={authority.path('kubelet-client.key')}",
        "--kubelet-preferred-address-types=InternalIP",  # node names have no DNS entry here
        f"--service-account-key-file={authority.path('sa.pub')}",
        f"--service-account-signing-key-file={authority.path('sa.key')}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={addresses.services}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        *options,
    ]


def controller_manager_command(authority: Authority, server: str, *options: str) -> list[str]:
    """Return the command of kube-controller-manager; `options` come last."""
    return [
        str(paths.program(KUBERNETES_TOOL, "kube-controller-manager")),
        f"--kubeconfig={authority.kubeconfig('controller-manager', CONTROLLER_MANAGER, server)}",
        f"--service-account-private-key-file={authority.path('sa.key')}",
        f"--root-ca-file={authority.path('ca.crt')}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        *options,
    ]


def issue_serving_certificates(authority: Authority, addresses: Addresses) -> None:
    """Make what the API server shows its clients and the kubelets."""
    authority.establish()
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
    reached_at = (
        *(f"DNS:{name}" for name in names),
        "IP:127.0.0.1",
        f"IP:{addresses.as_service}",
        f"IP:{addresses.host}",
    )
    authority.issue("apiserver", Identity("kube-apiserver"), alternative_names=reached_at)
    authority.issue("kubelet-client", KUBELET_CLIENT)


def answers_ready(authority: Authority, server: str) -> bool:
    """Ask /readyz; False while the API server does not say ok."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(authority.path("admin.crt"), authority.path("admin.key"))
    try:
        with urllib.request.urlopen(f"{server}/readyz", context=context, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass
class ControlPlane:
    """etcd and kube-apiserver as a context manager; see the module's docstring.

    Without `controller_manager` nothing collects garbage, namespaces never end and service accounts are not made (so
    their admission is off, and pods can be created in any namespace). `options` are added to
    kube-apiserver's command line.
    """

    controller_manager: bool = False
    options: tuple[str, ...] = ()
    timeout_s: float = 60.0
    folder: Path = field(init=False)
    addresses: Addresses = field(init=False)
    kubeconfig: Path = field(init=False)
    _cleanup: ExitStack = field(init=False, repr=False)

    def __enter__(self) -> Self:
        build(CONTROL_PLANE_TOOLS, Board())
        with ExitStack() as cleanup:
            self.folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="medley-apiserver-")))
            port, etcd, etcd_peers = free_ports(3)
            self.addresses = Addresses("127.0.0.1", port, etcd, etcd_peers)
            issue_serving_certificates(self.authority, self.addresses)
            self.kubeconfig = self.authority.kubeconfig("admin", ADMIN, self.server)
            self._spawn(cleanup, "etcd", etcd_command(self.folder / "etcd", self.addresses))
            self.start_apiserver(cleanup)
            if self.controller_manager:
                secure = f"--secure-port={free_ports(1)[0]}"
                command = controller_manager_command(self.authority, self.server, secure, "--bind-address=127.0.0.1")
                self._spawn(cleanup, "controller-manager", command)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    @property
    def authority(self) -> Authority:
        return Authority(self.folder / "pki")

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return self.addresses.server

    def kubeconfig_as(self, identity: Identity) -> Path:
        """Return a kubeconfig that speaks for somebody else, for tests of RBAC."""
        return self.authority.kubeconfig(identity.user.replace(":", "-"), identity, self.server)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as the administrator and return what it printed."""
        return run(
            [paths.program(KUBERNETES_TOOL, "kubectl"), "--kubeconfig", self.kubeconfig, *arguments], stdin=stdin
        )

    def apply(self, manifests: Path) -> None:
        """Apply a file or a folder of manifests, and wait until the CRDs among them are served."""
        self.kubectl("apply", "--server-side", "-f", str(manifests))
        if self.kubectl("get", "customresourcedefinitions", "-o", "name"):
            self.kubectl("wait", "--for=condition=Established", "customresourcedefinitions", "--all", "--timeout=30s")

    def log(self, name: str) -> str:
        """Return what `etcd`, `apiserver` or `controller-manager` wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start_apiserver(self, cleanup: ExitStack) -> "subprocess.Popen[bytes]":
        """Start kube-apiserver and wait until it is ready."""
        options = (
            self.options if self.controller_manager else ("--disable-admission-plugins=ServiceAccount", *self.options)
        )
        child = self._spawn(cleanup, "apiserver", apiserver_command(self.authority, self.addresses, *options))
        deadline = time.monotonic() + self.timeout_s
        while not answers_ready(self.authority, self.server):
            if child.poll() is not None:
                raise StageError(
                    f"starting kube-apiserver: it ended with {child.returncode}: {self.log('apiserver')[-2000:]}"
                )
            if time.monotonic() > deadline:
                raise StageError(f"starting kube-apiserver: not ready after {self.timeout_s:g} s")
            time.sleep(0.05)
        return child

    def _spawn(self, cleanup: ExitStack, name: str, command: list[str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as out:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        cleanup.callback(_end, child)
        return child


def free_ports(count: int) -> list[int]:
    """Return TCP ports of loopback that nobody listens on, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
