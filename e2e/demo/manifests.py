"""What the demo applies: three GPU classes as the stage's cloud sells them, profiles, and one service.

The profiles are sized for the story (two replicas for the forecast: what two cores can run), not measured, and say so.
"""

from __future__ import annotations

from typing import Any

API_VERSION = "medley.dev/v1alpha1"
MODEL = "stage/chaotic-llama"
ZONES = ("stage-a", "stage-b", "stage-c")
# US dollars per node-hour, on-demand and spot, in the stage's market.
PRICES = {"l4": ("0.805", "0.36"), "a10g": ("1.006", "0.45"), "h100": ("6.88", "2.90")}
INSTANCE_TYPES = {"l4": "g6.xlarge", "a10g": "g5.xlarge", "h100": "p5.4xlarge"}
MEMORY = {"l4": "24Gi", "a10g": "24Gi", "h100": "80Gi"}
# Requests per second one replica of the story's model sustains within the SLO.
SUSTAINED = {"l4": 2.5, "a10g": 2.6, "h100": 5.0}


def accelerator_class(name: str) -> dict[str, Any]:
    """Return an AcceleratorClass as the stage sells it."""
    on_demand, spot = PRICES[name]
    return {
        "apiVersion": API_VERSION,
        "kind": "AcceleratorClass",
        "metadata": {"name": name},
        "spec": {
            "gpu": {"product": name.upper(), "memory": MEMORY[name], "perNode": 1, "resourceName": "nvidia.com/gpu"},
            "zones": [
                {"name": z, "perHour": on_demand, "spotPerHour": spot, "maxNodes": 8, "maxSpotNodes": 8} for z in ZONES
            ],
            "nodes": {
                "karpenter": {
                    "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
                    "instanceTypes": [INSTANCE_TYPES[name]],
                }
            },
        },
    }


def profile(name: str) -> dict[str, Any]:
    """Return the PerformanceProfile of the story's model on a class."""
    latencies = [
        {"percentile": 50, "ttft": "300ms", "tpot": "30ms"},
        {"percentile": 99, "ttft": "1500ms", "tpot": "90ms"},
    ]
    return {
        "apiVersion": API_VERSION,
        "kind": "PerformanceProfile",
        "metadata": {"name": f"story-{name}"},
        "spec": {
            "model": MODEL,
            "acceleratorClass": name,
            "source": "Estimated",
            "maxModelLen": 4096,
            "maxRunning": 32,
            "points": [
                {
                    "inputTokens": 1000,
                    "outputTokens": 1000,
                    "requestsPerSecond": SUSTAINED[name] * part,
                    "latencies": latencies,
                }
                for part in (0.5, 1.0)
            ],
        },
    }


def service(name: str, namespace: str, image: str, *, rate: float = 3.0, **spec: Any) -> dict[str, Any]:
    """Return the LLMService of the story: two replicas, at least 30 % of them not on spot."""
    return {
        "apiVersion": API_VERSION,
        "kind": "LLMService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": MODEL, "maxModelLen": 4096, "source": {"pvc": {"claimName": "model"}}},
            "engine": {
                "image": image,
                # fp32, so that two engines agree on every token; one process and one thread each, so that two engines
                # and a cluster share two cores.
                "args": [
                    "--dtype=float32",
                    "--enforce-eager",
                    "--block-size=32",
                    "--max-num-seqs=32",
                    "--distributed-executor-backend=uni",
                ],
                "env": [
                    {"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"},
                    {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "nobind"},
                    {"name": "HF_HUB_OFFLINE", "value": "1"},
                    {"name": "OMP_NUM_THREADS", "value": "1"},
                    # On the CPU vLLM keeps "uni" only with this; otherwise two processes spin on each other.
                    {"name": "VLLM_ENABLE_V1_MULTIPROCESSING", "value": "0"},
                    # vLLM compiles a small function when logprobs are asked for; the stage's image has no compiler.
                    {"name": "TORCHDYNAMO_DISABLE", "value": "1"},
                ],
                # Without requests an engine on the CPU would get what everything else on this machine leaves.
                "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}},
            },
            "slo": {"percentile": 99, "tpot": "100ms", "ttft": "2s"},
            "workload": {
                "requestsPerSecond": rate,
                "source": "Forecast",
                "distribution": {"histogram": {"inputEdges": [1000], "outputEdges": [1000], "weights": [[1]]}},
            },
            "spot": {"policy": "Prefer", "onDemandFloor": "30%"},
            "limits": {"maxUSDPerHour": "20", "maxReplicas": 6},
            **spec,
        },
    }
