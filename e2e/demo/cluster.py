"""What a platform engineer does with helm and kubectl, as functions; shared by `make demo` and the end-to-end tests.

Knows a kubeconfig and the two programs, nothing of how the cluster came to be.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.stage.paths import REPOSITORY


class CommandError(RuntimeError):
    """A program ended with an error; the message holds its own words."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as its administrator sees it."""

    kubeconfig: Path
    kubectl_program: Path
    helm_program: Path

    async def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Run kubectl and return what it printed."""
        return await _run(self.kubectl_program, "--kubeconfig", str(self.kubeconfig), *arguments, given=given)

    async def helm(self, *arguments: str) -> str:
        """Run helm and return what it printed."""
        return await _run(self.helm_program, "--kubeconfig", str(self.kubeconfig), *arguments)

    async def apply(self, *manifests: Mapping[str, Any]) -> str:
        """Apply manifests, strictly validated, as `kubectl apply -f -` does."""
        return await self.kubectl("apply", "--validate=strict", "-f", "-", given=yaml.safe_dump_all(manifests))

    async def get(self, *what: str) -> dict[str, Any]:
        """Return one object, or a list, as the API server gives it."""
        found: dict[str, Any] = json.loads(await self.kubectl("get", *what, "-o", "json"))
        return found

    async def find(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the object that has a manifest's kind, name and namespace, or None."""
        where = ("-f", "-", "--ignore-not-found", "-o", "json")
        said = await self.kubectl("get", *where, given=json.dumps(manifest))
        if not said.strip():
            return None
        found: dict[str, Any] = json.loads(said)
        return next(iter(found["items"]), None) if found["kind"] == "List" else found

    async def items(self, *what: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        found: list[dict[str, Any]] = (await self.get(*what))["items"]
        return found

    async def install(self, images: Mapping[str, str], *settings: str, namespace: str = "medley-system") -> str:
        """Install (or upgrade) the chart with images given as {operator|router|engineInit: reference}."""
        chosen = [argument for name, ref in images.items() for argument in ("--set", f"images.{name}={ref}")]
        chosen += [argument for setting in settings for argument in ("--set", setting)]
        return await self.helm(
            "upgrade", "--install", "medley", str(REPOSITORY / "charts" / "medley"),
            "--namespace", namespace, "--create-namespace", "--wait", "--timeout", "180s", *chosen,
        )  # fmt: skip

    async def engines(self, namespace: str, service: str) -> list[dict[str, Any]]:
        """Return the engine pods of a service."""
        selector = f"medley.dev/service={service},medley.dev/component=engine"
        return await self.items("pods", "--namespace", namespace, "--selector", selector)


async def until(
    what: str,
    check: Callable[[], Any],
    *,
    seconds: float,
    every: float = 0.5,
    seen: Callable[[Any], None] | None = None,
) -> Any:
    """Return the first true result of the async function `check`; say `what` did not come after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = await check()
        if seen is not None:
            seen(result)
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        await asyncio.sleep(every)


def ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is Ready and not on its way out."""
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )


def condition(resource: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return one condition of an object, or an empty one."""
    found = [c for c in resource.get("status", {}).get("conditions", []) if c["type"] == kind]
    return dict(found[0]) if found else {}


async def _run(program: Path, *arguments: str, given: str | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.PIPE if given is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(given.encode() if given is not None else None)
    if process.returncode != 0:
        raise CommandError(f"{program.name} {' '.join(arguments[2:])}: {err.decode().strip() or out.decode().strip()}")
    return out.decode()
