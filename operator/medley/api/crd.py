"""The CustomResourceDefinitions, generated from the models: `python -m medley.api.crd [--check]` (`make generate`).

So is the second half of docs/objects.md, the reference of all fields.

The same documents go to `crds/` (for `kubectl apply`) and, as templates, into the chart. They are templates and not
Helm's `crds/` folder, because Helm never upgrades what lies there; `helm.sh/resource-policy: keep` leaves them, and so
every service, when the chart is uninstalled.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from medley.api.acceleratorclass import AcceleratorClass
from medley.api.budget import Budget
from medley.api.llmservice import LLMService
from medley.api.migration import Migration
from medley.api.performanceprofile import PerformanceProfile
from medley.api.reference import MARKER, section
from medley.api.schema import structural
from medley.core.names import GROUP, VERSION

_HEADER = "# Generated from the models in operator/medley/api by `make generate`; do not edit.\n"
_AGE = ("Age", "date", ".metadata.creationTimestamp")


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API server serves it; columns are (name, type, JSON path)."""

    model: type[BaseModel]
    plural: str
    short: str
    namespaced: bool
    columns: tuple[tuple[str, str, str], ...]
    has_status: bool = True


RESOURCES = (
    Resource(
        LLMService,
        "llmservices",
        "llm",
        namespaced=True,
        columns=(
            ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
            ("Replicas", "string", ".status.replicas.summary"),
            ("$/h", "string", ".status.plan.usdPerHour"),
            ("On-demand $/h", "string", ".status.plan.onDemandUSDPerHour"),
            ("Saved", "string", ".status.plan.savedPercent"),
            ("Spot", "integer", ".status.replicas.spot"),
            _AGE,
        ),
    ),
    Resource(
        AcceleratorClass,
        "acceleratorclasses",
        "acc",
        namespaced=False,
        columns=(
            ("GPU", "string", ".spec.gpu.product"),
            ("Memory", "string", ".spec.gpu.memory"),
            ("Per node", "integer", ".spec.gpu.perNode"),
            ("First zone", "string", ".spec.zones[0].name"),  # a column has one value
            ("$/h", "string", ".spec.zones[0].perHour"),
            ("Spot $/h", "string", ".spec.zones[0].spotPerHour"),
            _AGE,
        ),
    ),
    Resource(
        PerformanceProfile,
        "performanceprofiles",
        "pprof",
        namespaced=False,
        columns=(
            ("Model", "string", ".spec.model"),
            ("Class", "string", ".spec.acceleratorClass"),
            ("TP", "integer", ".spec.tensorParallel"),
            ("PP", "integer", ".spec.pipelineParallel"),
            ("Source", "string", ".spec.source"),
            ("Measured", "date", ".spec.measuredAt"),
            _AGE,
        ),
        has_status=False,
    ),
    Resource(
        Budget,
        "budgets",
        "bud",
        namespaced=False,
        columns=(("$/h", "string", ".spec.maxUSDPerHour"), _AGE),
        has_status=False,
    ),
    Resource(
        Migration,
        "migrations",
        "mig",
        namespaced=True,
        columns=(
            ("Service", "string", ".spec.service"),
            ("Node", "string", ".spec.node"),
            ("Cause", "string", ".spec.cause"),
            ("Phase", "string", ".status.phase"),
            ("Finished", "integer", ".status.streams.finished"),
            ("Carried", "integer", ".status.streams.carried"),
            ("Refilled", "integer", ".status.streams.refilled"),
            ("Lost", "integer", ".status.streams.lost"),
            _AGE,
        ),
    ),
)


def definition(resource: Resource, *, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    kind = resource.model.__name__
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": structural(resource.model)},
        "additionalPrinterColumns": [
            {"name": name, "type": of, "jsonPath": path} for name, of, path in resource.columns
        ],
    }
    if resource.has_status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "medley", "app.kubernetes.io/part-of": "medley"},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": resource.plural,
                "singular": kind.lower(),
                "shortNames": [resource.short],
                "categories": ["medley"],
            },
            "versions": [version],
        },
    }


def documents(root: Path) -> dict[Path, str]:
    """Return every generated file of a checkout with the content that it should have."""
    generated: dict[Path, str] = {}
    for resource in RESOURCES:
        name = f"{GROUP}_{resource.plural}.yaml"
        kept = definition(resource, annotations={"helm.sh/resource-policy": "keep"})
        generated[root / "crds" / name] = _HEADER + _text(definition(resource))
        generated[root / "charts" / "medley" / "templates" / "crds" / name] = _HEADER + _text(kept)
    page = root / "docs" / "objects.md"
    written = page.read_text(encoding="utf-8").partition(MARKER)[0] if page.exists() else ""
    tables = (section(resource.model.__name__, structural(resource.model)) for resource in RESOURCES)
    return generated | {page: written + MARKER + "\n" + "\n".join(tables)}


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which are not current; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medley.api.crd", description="Generate the CRDs from the models.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not current")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the checkout")
    options = parser.parse_args(arguments)
    stale = [
        (path, text)
        for path, text in documents(options.root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if options.check:
            sys.stderr.write(f"{path} is not current: run `make generate`\n")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 1 if options.check and stale else 0


class _Dumper(yaml.SafeDumper):
    """Writes equal lists out each time: anchors are hard to read in a diff."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # the name is PyYAML's
        return True


def _text(document: dict[str, Any]) -> str:
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
