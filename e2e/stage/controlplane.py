"""The processes that the stage runs on the host, as values: name, command, environment. Starts nothing.

Used by `cluster`, in this order: a later one may need an earlier one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from e2e.stage import images, paths
from e2e.stage.addresses import (
    API_PORT,
    CONTROLLER_MANAGER_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    HOST,
    KARPENTER_HEALTH_PORT,
    KARPENTER_METRICS_PORT,
    REGISTRY_ADDRESS,
    SCHEDULER_PORT,
    SERVICE_RANGE,
)
from e2e.stage.apiserver import (
    SCHEDULER,
    Addresses,
    apiserver_command,
    controller_manager_command,
    etcd_command,
)
from e2e.stage.build import karpenter_tool
from e2e.stage.pki import ADMIN, Authority
from e2e.stage.versions import KUBERNETES_TOOL

ADDRESSES = Addresses(HOST, API_PORT, ETCD_PORT, ETCD_PEER_PORT, SERVICE_RANGE)
MANIFESTS = Path(__file__).with_name("manifests")
_SILENCE_BEFORE_NOT_READY = "16s"


@dataclass(frozen=True, slots=True)
class Server:
    """One process of the host."""

    name: str
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def pid_file(self) -> Path:
        return paths.processes() / self.name

    @property
    def log(self) -> Path:
        return paths.logs() / f"{self.name}.log"


def etcd() -> Server:
    """Return the store."""
    return Server("etcd", etcd_command(paths.stage() / "etcd", ADDRESSES))


def apiserver(authority: Authority) -> Server:
    """Return the API server, with an audit log of every write."""
    options = [
        f"--audit-policy-file={MANIFESTS / 'audit-policy.yaml'}",
        f"--audit-log-path={audit_log()}",
        "--enable-admission-plugins=NodeRestriction",
        "--profiling=false",
    ]
    return Server("apiserver", apiserver_command(authority, ADDRESSES, *options))


def controller_manager(authority: Authority) -> Server:
    """Return the controllers; a node silent for 16 s is NotReady (40 s elsewhere: here kubelets report every 4 s)."""
    options = [
        f"--node-monitor-grace-period={_SILENCE_BEFORE_NOT_READY}",
        "--bind-address=127.0.0.1",
        f"--secure-port={CONTROLLER_MANAGER_PORT}",
    ]
    return Server("controller-manager", controller_manager_command(authority, ADDRESSES.server, *options))


def scheduler(authority: Authority) -> Server:
    """Return the scheduler."""
    kubeconfig = authority.kubeconfig("scheduler", SCHEDULER, ADDRESSES.server)
    program = str(paths.program(KUBERNETES_TOOL, "kube-scheduler"))
    options = [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={SCHEDULER_PORT}",
    ]
    return Server("scheduler", [program, *options])


def registry() -> Server:
    """Return the image registry; its configuration is written here, since it names the cache."""
    configuration = paths.stage() / "registry.yaml"
    values = {"storage": str(images.registry_storage()), "address": REGISTRY_ADDRESS}
    configuration.write_text(manifest("registry", values))
    return Server("registry", ["docker-registry", "serve", str(configuration)])


def karpenter(authority: Authority) -> Server:
    """Return Karpenter with the stage's market."""
    gates = (
        "NodeOverlay",
        "NodeRepair",
        "ReservedCapacity",
        "SpotToSpotConsolidation",
        "StaticCapacity",
        "CapacityBuffer",
    )
    return Server(
        "karpenter",
        [str(paths.program(karpenter_tool(), "karpenter"))],
        {
            "KUBECONFIG": str(authority.kubeconfig("admin", ADMIN, ADDRESSES.server)),
            "SYSTEM_NAMESPACE": "kube-system",
            "DISABLE_LEADER_ELECTION": "true",
            "METRICS_PORT": str(KARPENTER_METRICS_PORT),
            "HEALTH_PROBE_PORT": str(KARPENTER_HEALTH_PORT),
            "INSTANCE_TYPES_FILE_PATH": str(paths.cloud() / "instance-types.json"),
            "MARKET_FILE": str(paths.cloud() / "market.json"),
            "FEATURE_GATES": ",".join(f"{gate}=false" for gate in gates),
            "BATCH_IDLE_DURATION": "500ms",  # how long it waits for more pods before it buys (default 1 s)
            "BATCH_MAX_DURATION": "5s",
        },
    )


def cloud(python: str) -> Server:
    """Return the cloud agent."""
    return Server("cloud", [python, "-m", "e2e.stage.cloud"], {"PYTHONPATH": str(paths.REPOSITORY)})


def audit_log() -> Path:
    """Return where the API server writes down who wrote what, one JSON object per line."""
    return paths.logs() / "audit.jsonl"


def manifest(name: str, values: Mapping[str, str]) -> str:
    """Return one of our manifests with its `${placeholders}` filled in."""
    return Template((MANIFESTS / f"{name}.yaml").read_text()).substitute(values)
