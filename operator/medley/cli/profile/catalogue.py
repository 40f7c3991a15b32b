"""The catalogue of GPUs: reads gpus.yaml beside this file, or one of the user's own in the same form."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from medley.core.errors import InvalidInputError
from medley.core.faults import one_line
from medley.planning.roofline import GIGA, TERA, Dtype, Gpu

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Source(BaseModel):
    """Where some figures of a GPU are from; `checked`: where they were looked up, None: they are not confirmed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    figures: Annotated[tuple[str, ...], Field(min_length=1)]
    document: str
    date: Annotated[str, Field(pattern=r"^20[0-9]{2}-[01][0-9]$")] | None = None
    checked: str | None = None

    def __str__(self) -> str:
        return self.document + (f" ({self.date})" if self.date else "")


class Entry(BaseModel):
    """One GPU as the file has it; every figure has exactly one source."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)

    name: str
    product: str
    memory_gib: Annotated[_Positive, Field(alias="memoryGiB")]
    bandwidth: Annotated[_Positive, Field(alias="bandwidthGBPerSecond")]
    teraflops: Annotated[dict[Dtype, _Positive], Field(min_length=1)]
    link: str
    link_rate: Annotated[_Positive, Field(alias="linkGBPerSecond")]
    sources: tuple[Source, ...]

    @model_validator(mode="after")
    def _every_figure_has_one_source(self) -> Self:
        figures = ["memoryGiB", "bandwidthGBPerSecond", "linkGBPerSecond", *(dtype.value for dtype in self.teraflops)]
        sourced = [figure for source in self.sources for figure in source.figures]
        if sorted(figures) != sorted(sourced):
            odd = sorted({each for each in {*figures, *sourced} if figures.count(each) != sourced.count(each)})
            raise ValueError(f"{self.name}: give {', '.join(odd)} one source each, and no other figure any")
        return self

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """Figures that nobody looked up."""
        return tuple(figure for source in self.sources if source.checked is None for figure in source.figures)

    def gpu(self) -> Gpu:
        """Return the figures that planning works with."""
        return Gpu(
            name=self.name,
            memory_bytes=self.memory_gib * 2**30,
            bytes_per_s=self.bandwidth * GIGA,
            flops=tuple((dtype, rate * TERA) for dtype, rate in sorted(self.teraflops.items())),
            link_bytes_per_s=self.link_rate * GIGA,
        )


_ENTRIES = TypeAdapter(list[Entry])


def entries(path: Path | None = None) -> dict[str, Entry]:
    """Return the GPUs by name; `path`: a file of the user's own. Raises InvalidInputError."""
    try:
        text = path.read_text() if path else (resources.files(__package__) / "gpus.yaml").read_text()
        found = _ENTRIES.validate_python(yaml.safe_load(text))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read: {one_line(error)}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise InvalidInputError(f"{path}: {place}", f"{first['msg']}, got {first['input']!r}") from error
    named = {entry.name: entry for entry in found}
    if len(named) != len(found):
        raise InvalidInputError(str(path), "two GPUs have the same name; keep one")
    return named


def gpu(name: str, path: Path | None = None) -> Gpu:
    """Return a GPU of the catalogue. Raises InvalidInputError, which lists what there is."""
    known = entries(path)
    if name not in known:
        raise InvalidInputError("--gpu", f"no GPU {name} in the catalogue; there are {', '.join(known)}")
    return known[name].gpu()
