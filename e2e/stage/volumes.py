"""The test model as pods see it: a PersistentVolumeClaim, since Pod Security "restricted" forbids host paths in pods.

Used by `cli` and end-to-end tests. The PersistentVolume is a folder of the host, which every machine sees.
"""

from pathlib import Path

from e2e.stage import cluster, controlplane
from e2e.stage.progress import Board
from medley.demo.model import ensure_model


def model_folder(board: Board) -> Path:
    """Return the folder of the small chaotic Llama, made if it is not in the cache."""
    with board.task("test model") as say:
        return ensure_model(say)


def offer_model(namespace: str, claim: str, board: Board) -> Path:
    """Offer the model to a namespace (made if need be) as the claim `claim`; return its folder on the host."""
    folder = model_folder(board)
    known = {item["metadata"]["name"] for item in cluster.api().items("/api/v1/namespaces")}
    if namespace not in known:
        cluster.kubectl("create", "namespace", namespace)
    values = {"name": claim, "namespace": namespace, "folder": str(folder)}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=controlplane.manifest("model", values))
    cluster.kubectl(
        "wait", "--namespace", namespace, "--for=jsonpath={.status.phase}=Bound", f"pvc/{claim}", "--timeout=90s"
    )
    return folder
