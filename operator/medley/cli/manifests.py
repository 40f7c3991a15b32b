"""Read manifests from files, for `medley plan`: services, the catalogue, profiles and Budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from medley.api import convert
from medley.core.accelerators import AcceleratorClass
from medley.core.errors import InvalidInputError
from medley.core.faults import one_line
from medley.core.names import API_VERSION
from medley.core.profiles import Profile
from medley.core.service import AllocationMode, Budget, Service
from medley.planning.fleet import Neighbour, Observed


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a plan is made from."""

    service: Service
    classes: tuple[AcceleratorClass, ...]
    profiles: tuple[Profile, ...]
    budgets: tuple[Budget, ...] = ()
    others: tuple[Service, ...] = ()  # that nodes and Budgets are shared with

    @property
    def observed(self) -> Observed:
        """What a pass of the operator would see, if nothing existed yet and every plan were carried out."""
        return Observed(
            service=self.service,
            classes=self.classes,
            profiles=self.profiles,
            budgets=self.budgets,
            neighbours=tuple(
                Neighbour(
                    f"{each.namespace}/{each.name}",
                    each,
                    budget=each.limits.budget,
                    carried_out=each.allocation is not AllocationMode.MELANGE,  # which is for comparison only
                )
                for each in self.others
            ),
        )


def read(paths: Iterable[Path]) -> Manifests:
    """Return what the files say of one service; other kinds of objects are passed over.

    Raises InvalidInputError with file and field.
    """
    found = read_all(paths)
    if len(found) > 1:
        names = ", ".join(each.service.name for each in found)
        raise InvalidInputError(
            "-f",
            f"expected one LLMService of {API_VERSION}, found {names}; `medley plan` alone takes several, so put "
            "the one into a file of its own",
        )
    return found[0]


def read_all(paths: Iterable[Path]) -> tuple[Manifests, ...]:
    """Return what the files say of each service, in their order; raises InvalidInputError with file and field."""
    services: list[Service] = []
    classes: list[AcceleratorClass] = []
    profiles: list[Profile] = []
    budgets: list[Budget] = []
    for path in paths:
        for number, manifest in enumerate(_documents(path), start=1):
            try:
                match _value(manifest):
                    case Service() as service:
                        services.append(service)
                    case AcceleratorClass() as each:
                        classes.append(each)
                    case Profile() as profile:
                        profiles.append(profile)
                    case Budget() as budget:
                        budgets.append(budget)
            except InvalidInputError as error:
                raise InvalidInputError(f"{path}, document {number}", str(error)) from error
    if not services:
        raise InvalidInputError("-f", f"expected an LLMService of {API_VERSION}, found none")
    if len(services) > 1:
        # As kubectl has it; services are told apart by it.
        services = [replace(each, namespace=each.namespace or "default") for each in services]
    _refuse_twice("LLMService", [f"{each.namespace}/{each.name}" for each in services])
    _refuse_twice("AcceleratorClass", [each.name for each in classes])
    _refuse_twice("PerformanceProfile", [profile.name for profile in profiles])
    _refuse_twice("Budget", [each.name for each in budgets])
    return tuple(
        Manifests(
            service,
            tuple(classes),
            tuple(profiles),
            tuple(budgets),
            tuple(other for other in services if other is not service),
        )
        for service in services
    )


def _value(manifest: object) -> Service | AcceleratorClass | Profile | Budget | None:
    match manifest:
        case {"apiVersion": str(version), "kind": "LLMService"} if version == API_VERSION:
            return convert.service(convert.read_llm_service(manifest))
        case {"apiVersion": str(version), "kind": "AcceleratorClass"} if version == API_VERSION:
            return convert.accelerator_class(convert.read_accelerator_class(manifest))
        case {"apiVersion": str(version), "kind": "PerformanceProfile"} if version == API_VERSION:
            return convert.profile(convert.read_performance_profile(manifest))
        case {"apiVersion": str(version), "kind": "Budget"} if version == API_VERSION:
            return convert.budget(convert.read_budget(manifest))
        case {"apiVersion": str(), "kind": str()}:
            return None
    raise InvalidInputError("apiVersion", "expected a Kubernetes object with apiVersion and kind")


def _documents(path: Path) -> list[object]:
    try:
        loaded = [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except OSError as error:
        raise InvalidInputError(str(path), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(str(path), f"is not YAML: {one_line(error)}") from error
    return loaded


def _refuse_twice(kind: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInputError("metadata.name", f"{kind} {', '.join(twice)} is there more than once; keep one")
