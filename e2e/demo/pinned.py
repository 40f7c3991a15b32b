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
from dataclasses import dataclass
from pathlib import Path

from e2e.demo.cluster import Cluster, CommandError
from e2e.demo.place import PlaceError


@dataclass(frozen=True, slots=True)
class Context:
    """A cluster that cannot be switched, and how its user calls it."""

    cluster: Cluster
    name: str
    server: str  # the API server's URL

    def forget(self) -> None:
        """Remove the kubeconfig; may be done again."""
        self.cluster.kubeconfig.unlink(missing_ok=True)


async def current(environment: Mapping[str, str], namespace: str) -> Context:
    """Return the current context; raise PlaceError if there is none or its cluster cannot be reached.

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
        where = environment.get("KUBECONFIG") or "not set, and kubectl knows no other"
        raise PlaceError(f"KUBECONFIG: {where}: {error}") from error
    content = json.loads(chosen)
    for each in content["contexts"]:
        each["context"]["namespace"] = namespace
    descriptor, name = tempfile.mkstemp(prefix="medley-demo-", suffix=".kubeconfig")  # for its owner alone
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    pinned = Context(Cluster(Path(name), kubectl, helm), context, content["clusters"][0]["cluster"]["server"])
    try:
        await pinned.cluster.kubectl("version", "--request-timeout=15s")
    except CommandError as error:
        pinned.forget()
        raise PlaceError(f"the cluster of context {context} ({pinned.server}) does not answer: {error}") from error
    return pinned


async def _words(environment: Mapping[str, str], program: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(environment)
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise CommandError(err.decode().strip())
    return out.decode()
