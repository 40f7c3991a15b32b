"""A service, a class and a profile as manifests: 4 requests/s, 2 per l4 of which 85 % are relied on, so three l4."""

from __future__ import annotations

from pathlib import Path

import pytest

MANIFESTS = """
apiVersion: medley.dev/v1alpha1
kind: LLMService
metadata: {name: chat}
spec:
  model: {name: llama, maxModelLen: 4096}
  slo: {percentile: 99, tpot: 40ms, ttft: 2s}
  workload:
    requestsPerSecond: 4
    distribution: {histogram: {inputEdges: [100, 1000], outputEdges: [100], weights: [[1], [1]]}}
  limits: {maxUSDPerHour: "BUDGET", maxReplicas: 10}
---
apiVersion: medley.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: l4}
spec:
  gpu: {product: NVIDIA-L4, memory: 24Gi}
  zones: [{name: us-east-1a, perHour: "0.70", spotPerHour: "0.28"}]
  nodes:
    karpenter:
      nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}
      instanceTypes: [g6.xlarge]
---
apiVersion: medley.dev/v1alpha1
kind: PerformanceProfile
metadata: {name: llama-l4}
spec:
  model: llama
  acceleratorClass: l4
  source: Estimated
  maxModelLen: 4096
  points:
  - {inputTokens: 1000, outputTokens: 100, requestsPerSecond: 2, latencies: [{percentile: 99, ttft: 500ms, tpot: 30ms}]}
"""


@pytest.fixture
def manifests(tmp_path: Path) -> str:
    path = tmp_path / "chat.yaml"
    path.write_text(MANIFESTS.replace("BUDGET", "40"))
    return str(path)


@pytest.fixture
def poor(tmp_path: Path) -> str:
    """Return the same with a budget of 0.50 USD/h, where three spot l4 cost 0.84."""
    path = tmp_path / "poor.yaml"
    path.write_text(MANIFESTS.replace("BUDGET", "0.50"))
    return str(path)
