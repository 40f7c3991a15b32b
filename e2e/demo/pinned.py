"""The current context of KUBECONFIG in a file of its own, so that nobody can switch the cluster under a running demo.

Used by `existing`. Needs kubectl and helm on PATH.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from e2e.demo.cluster import Cluster, CommandError
from e2e.demo.place import PlaceError


async def cluster(environment: Mapping[str, str], namespace: str) -> tuple[Cluster, str]:
    """Return the cluster of the current context, and the context's name; raise PlaceError if it cannot be reached.

    `namespace` is where objects go whose manifest names none.
    """
    found = {name: shutil.which(name, path=environment.get("PATH")) for name in ("kubectl", "helm")}
    for name, path in found.items():
        if path is None:
            raise PlaceError(f"{name} is not on PATH: install it")
    kubectl, helm = (Path(str(path)) for path in found.values())
    try:
        context = (await _words(environment, kubectl, "config", "current-context")).strip()
        chosen = await _words(environment, kubectl, "config", "view", "--raw", "--minify", "--flatten", "-o", "json")
    except CommandError as error:
        raise PlaceError(f"KUBECONFIG={environment.get('KUBECONFIG', '')}: {error}") from error
    content = json.loads(chosen)
    for each in content["contexts"]:
        each["context"]["namespace"] = namespace
    descriptor, name = tempfile.mkstemp(prefix="medley-demo-", suffix=".kubeconfig")  # for its owner alone
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    found_cluster = Cluster(Path(name), kubectl, helm)
    try:
        await found_cluster.kubectl("version", "--request-timeout=15s")
    except CommandError as error:
        forget(found_cluster)
        raise PlaceError(f"the cluster of context {context} does not answer: {error}") from error
    return found_cluster, context


def forget(pinned: Cluster) -> None:
    """Remove the file."""
    pinned.kubeconfig.unlink(missing_ok=True)


async def _words(environment: Mapping[str, str], program: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(environment)
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise CommandError(err.decode().strip())
    return out.decode()
