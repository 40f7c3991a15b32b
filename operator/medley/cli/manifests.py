"""Read manifests from files, for `medley plan`: one service, its catalogue and its profiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from medley.api import convert
from medley.core.accelerators import AcceleratorClass
from medley.core.errors import InvalidInputError
from medley.core.faults import one_line
from medley.core.names import API_VERSION
from medley.core.profiles import Profile
from medley.core.service import Service


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a plan is made from."""

    service: Service
    classes: tuple[AcceleratorClass, ...]
    profiles: tuple[Profile, ...]


def read(paths: Iterable[Path]) -> Manifests:
    """Return what the files say; other kinds of objects are passed over.

    Raises InvalidInputError with file and field.
    """
    services: list[Service] = []
    classes: list[AcceleratorClass] = []
    profiles: list[Profile] = []
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
            except InvalidInputError as error:
                raise InvalidInputError(f"{path}, document {number}", str(error)) from error
    if len(services) != 1:
        raise InvalidInputError("-f", f"expected one LLMService of {API_VERSION}, found {len(services)}")
    _refuse_twice("AcceleratorClass", [each.name for each in classes])
    _refuse_twice("PerformanceProfile", [profile.name for profile in profiles])
    return Manifests(services[0], tuple(classes), tuple(profiles))


def _value(manifest: object) -> Service | AcceleratorClass | Profile | None:
    match manifest:
        case {"apiVersion": str(version), "kind": "LLMService"} if version == API_VERSION:
            return convert.service(convert.read_llm_service(manifest))
        case {"apiVersion": str(version), "kind": "AcceleratorClass"} if version == API_VERSION:
            return convert.accelerator_class(convert.read_accelerator_class(manifest))
        case {"apiVersion": str(version), "kind": "PerformanceProfile"} if version == API_VERSION:
            return convert.profile(convert.read_performance_profile(manifest))
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
