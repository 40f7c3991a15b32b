"""A service, a class and a profile as manifests: 4 requests/s, 2 per l4 of which 85 % are relied on, so three l4.

Tests put what they are about below SERVICE (which ends in `spec`) and in the place of NODES.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import Result

SERVICE = """
apiVersion: medley.dev/v1alpha1
kind: LLMService
metadata: {name: chat}
spec:
  model: {name: llama, maxModelLen: 4096}
  slo: {percentile: 99, tpot: 40ms, ttft: 2s}
  workload:
    requestsPerSecond: 4
    distribution: {histogram: {inputEdges: [100, 1000], outputEdges: [100], weights: [[1], [1]]}}
"""
CLASS = """
apiVersion: medley.dev/v1alpha1
kind: AcceleratorClass
metadata: {name: l4}
spec:
  gpu: {product: NVIDIA-L4, memory: 24Gi}
  zones: [{name: us-east-1a, perHour: "0.70", spotPerHour: "0.28"}]
  nodes: NODES
"""
KARPENTER = (
    "{karpenter: {nodeClassRef: {group: karpenter.k8s.aws, kind: EC2NodeClass, name: gpu}, instanceTypes: [g6.xlarge]}}"
)
PROFILE = """
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


def catalogue(nodes: str = KARPENTER) -> str:
    """Return the class and the profile; `nodes`: how the class's nodes come to be."""
    return CLASS.replace("NODES", nodes) + "---" + PROFILE


def existing(market: str) -> str:
    return f"{{existing: {{nodeSelector: {{gpu: l4}}, market: {market}}}}}"


def aside(result: Result) -> str:
    """Return what was said beside the answer, in one line whatever the width."""
    return " ".join(result.stderr.split())


def _written(path: Path, usd_per_hour: str) -> str:
    limits = f'  limits: {{maxUSDPerHour: "{usd_per_hour}", maxReplicas: 10}}\n'
    path.write_text(SERVICE + limits + "---" + catalogue())
    return str(path)


@pytest.fixture
def manifests(tmp_path: Path) -> str:
    return _written(tmp_path / "chat.yaml", "40")


@pytest.fixture
def poor(tmp_path: Path) -> str:
    """Return the same with a budget of 0.50 USD/h, where three spot l4 cost 0.84."""
    return _written(tmp_path / "poor.yaml", "0.50")
