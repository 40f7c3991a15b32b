"""What the operator tells a supervisor, and what the supervisor answers: version 1 of the control protocol.

`PUT /v1/assignment` takes an `Assignment`, `POST /v1/drain` takes a `DrainRequest`, `GET /v1/state` takes nothing; each
answers an `EngineReport`. The same assignment may come any number of times.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Message(BaseModel):
    """Base of all messages: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def faults_of(error: ValidationError, whole: str, *, most: int | None = None) -> str:
    """Return what is wrong with a message, `field: fault`, the first `most` of them (None: all) with `; ` between them.

    `whole`: what a fault of no one field is put down to.
    """
    faults = error.errors(include_input=False, include_url=False)[:most]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or whole}: {fault['msg']}" for fault in faults)


class Assignment(Message):
    """Which part of which replica a GPU holder serves."""

    service: str
    replica: str
    generation: Annotated[int, Field(ge=1)]  # a higher one replaces a lower one; a lower one is refused with 409
    model: str  # path or hub name, as vLLM's --model takes it
    served_model_name: str
    max_model_len: Annotated[int, Field(ge=1)] | None = None  # None: the model's own
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=0)] = 0  # of this pod within the replica; 0 is the head
    head_address: str | None = None  # set for a replica over several pods
    peers: tuple[str, ...] = ()  # pod addresses of the replica, by rank
    engine_args: tuple[str, ...] = ()  # appended to vLLM's command line, after medley's own


class DrainRequest(Message):
    """Stop being ready; end at `deadline` whatever still runs. None: when the last request ends."""

    deadline: datetime | None = None


class Capability(StrEnum):
    """What an engine can do beyond plain vLLM; a router may use only what the engine's report names."""

    RESUME_EXACT = "resume-exact"  # committed tokens may come back as output tokens, see wire/resume.py
    CARRY_KV = "carry-kv"  # gives tickets and takes those of its like, see wire/ticket.py


class EnginePhase(StrEnum):
    """What a supervisor's engine is doing."""

    UNASSIGNED = "Unassigned"
    STARTING = "Starting"
    SERVING = "Serving"
    STALLED = "Stalled"
    DRAINING = "Draining"
    STOPPED = "Stopped"
    FAILED = "Failed"


class EngineReport(Message):
    """What is, inside one engine pod."""

    phase: EnginePhase
    generation: int = 0  # of the assignment in force; 0: none
    running: int = 0  # requests running in the engine
    waiting: int = 0
    tokens_generated: int = 0  # since the engine started
    restarts: int = 0  # of vLLM, within this pod
    message: str = ""  # for people: why it failed or stalled, in the engine's own words
    engine_version: str = ""
    # Plain strings, so that an older router reads the report of a newer engine; the known ones are `Capability`.
    capabilities: tuple[str, ...] = ()
