"""What a machine's containerd, kubelet, kube-proxy and CNI are told. Pure: text from values.

Used by `machine`. Several of these run side by side on one kernel, so every path is the machine's own.
"""

import json
from pathlib import Path

from e2e.stage.addresses import DNS, POD_RANGE, REGISTRY, REGISTRY_ADDRESS, Slot


def containerd(folder: Path, pause_image: str) -> str:
    """Return containerd's configuration (TOML) for a machine whose files lie in `folder`."""
    return f"""version = 3
root = "{folder}/containerd"
state = "{folder}/run"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.sock.ttrpc"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "{folder}/certs.d"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause_image}"
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE (a machine that is itself a container) runc may not lower a score.
  restrict_oom_score_adj = true
  # Pods' network namespaces lie with the rest of the machine, and go with it.
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{folder}/cni"
"""


def puller(folder: Path) -> str:
    """Return the configuration of a containerd that only pulls images, for the golden root."""
    return f"""version = 3
root = "{folder}/containerd"
state = "{folder}/run"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.sock.ttrpc"
"""


def registry_hosts() -> tuple[str, str]:
    """Return (folder name, hosts.toml) by which containerd finds the registry behind its name."""
    hosts = f'server = "http://{REGISTRY_ADDRESS}"\n[host."http://{REGISTRY_ADDRESS}"]\n'
    return REGISTRY, f'{hosts}  capabilities = ["pull", "resolve"]\n'


def cni(folder: Path, slot: Slot) -> str:
    """Return the CNI configuration: pods on a bridge inside the machine, routed (not masqueraded) to the others."""
    ipam = {
        "type": "host-local",
        "dataDir": f"{folder}/cni-data",
        "ranges": [[{"subnet": slot.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}, indent=1)


def kubelet(folder: Path, authority: Path, cgroup: str) -> str:
    """Return the KubeletConfiguration (JSON); `authority` is the CA's certificate, `cgroup` the machine's root."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup}",
            "containerRuntimeEndpoint": f"unix://{folder}/c.sock",
            "podLogsDir": f"{folder}/pods",
            "volumePluginDir": f"{folder}/kubelet/volumeplugins",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "failSwapOn": False,
            "nodeStatusUpdateFrequency": "4s",  # with the controller manager's 16 s of grace: a dead node shows soon
            "nodeLeaseDurationSeconds": 8,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi"},
            "enforceNodeAllocatable": [],
            # Each machine claims the whole of this one: the sum exceeds what there is, which is what lets a cluster of
            # GPU nodes fit two cores. Containers' CPU requests still weigh against each other in the kernel.
            "maxPods": 110,
        },
        indent=1,
    )


def kube_proxy(kubeconfig: Path, machine: str) -> str:
    """Return the KubeProxyConfiguration (JSON); its `clusterCIDR` lets the host reach services through a machine."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": machine,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "conntrack": {"maxPerCore": 0, "min": 0},  # the table's size is the host's business
        },
        indent=1,
    )
