"""The model of an LLMService, and where engines get it from."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from medley.api.base import KeyRef, Part, Rule, Text, exactly_one


class HubSource(Part):
    """A model hub that vLLM downloads from (Hugging Face)."""

    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit; the hub's default if absent. A commit makes replicas equal for ever."""
    token_secret_ref: KeyRef | None = None
    """Secret with an access token, for gated models."""


_RELATIVE = r"^$|^[^/].*$"


_STAYS_INSIDE = Rule(
    "!('..' in self.path.split('/'))",
    lambda part: ".." not in part.path.split("/"),
    "path must stay inside the volume: write it without '..', from the volume's root",
    ".path",
)


class PvcSource(Part):
    """A PersistentVolumeClaim that holds the model; it is mounted read-only by every engine."""

    rules: ClassVar = (_STAYS_INSIDE,)

    claim_name: Text
    """Name of the claim."""
    path: Annotated[str, Field(pattern=_RELATIVE, max_length=1024)] = ""
    """Folder of the model within the claim, without a leading slash; empty: the root of the claim."""


class ImageSource(Part):
    """An OCI image that holds the model, mounted as an image volume (Kubernetes 1.35 and later have it on)."""

    rules: ClassVar = (_STAYS_INSIDE,)

    reference: Annotated[str, Field(min_length=1, max_length=1024)]
    """Image, for example registry.example/models/llama-2-7b:1."""
    path: Annotated[str, Field(pattern=_RELATIVE, max_length=1024)] = ""
    """Folder of the model within the image, without a leading slash; empty: the root of the image."""


class ModelSource(Part):
    """Where engines get the model from."""

    rules: ClassVar = (
        exactly_one("hub", "pvc", "image", remedy="a model has one source; leave source out to use the hub"),
    )

    hub: HubSource | None = None
    """Download from a model hub by `model.name`."""
    pvc: PvcSource | None = None
    """Read from a PersistentVolumeClaim."""
    image: ImageSource | None = None
    """Read from an OCI image."""


class Model(Part):
    """The model."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
    """Its name on the hub; PerformanceProfiles are found by it."""
    source: ModelSource = ModelSource(hub=HubSource())
    """Where engines get it from; the hub if absent."""
    max_model_len: Annotated[int, Field(ge=16, le=10_000_000)] | None = None
    """Longest request, input + output, in tokens; the model's own limit if absent."""
    served_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """What clients write in the field `model`; `name` if absent."""
