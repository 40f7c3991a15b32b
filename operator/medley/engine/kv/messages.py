"""What workers of two engines say to each other over one connection; pure.

The reader asks, the holder answers, any number of times in turn. A message is its length in four bytes, big-endian, and
JSON. After an `Answer` with `ok` to a `ReadRequest` come exactly `bytes_total` bytes: for each layer asked for, each
block and each head, its positions in order, as they lie in memory. A reader that has NIXL may be told where the bytes
are instead. A `PinQuery` goes to the engine core and asks whether an export is still pinned. All is checked here, so
that nothing beyond sees what a stranger sent.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from medley.engine.kv.layout import Geometry, Shard
from medley.wire.assignment import Message, faults_of
from medley.wire.ticket import ITEM_BYTES, MOST_BLOCKS, MOST_LAYERS, Count, Digest, ExportId

LENGTH: Final = Struct(">I")
MOST_MESSAGE_BYTES: Final = 4 << 20

_Address = Annotated[int, Field(ge=0, lt=1 << 64)]


class ProtocolError(Exception):
    """The other side does not speak this protocol, or not this version of it."""


class ReadRequest(Message):
    """Read these slices of these blocks."""

    kind: Literal["read"] = "read"
    version: Literal[1] = 1
    export_id: ExportId
    grant: Digest
    granted: Annotated[tuple[Count, ...], Field(max_length=MOST_BLOCKS)]  # all blocks of the ticket
    wanted: tuple[Count, Count]  # positions [lo, hi) in `granted`
    layers: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(min_length=1, max_length=MOST_LAYERS)]
    head_lo: Count
    head_n: Annotated[int, Field(ge=1, le=4096)]
    block_size: Count
    dtype: Annotated[str, Field(max_length=32)]
    content: Count
    by: Literal["tcp", "nixl"] = "tcp"  # nixl: say where the bytes are, if you can, and I fetch them


class PinQuery(Message):
    """Ask whether an export is still pinned."""

    kind: Literal["pinned?"] = "pinned?"
    version: Literal[1] = 1
    export_id: ExportId


class Remote(Message):
    """Where bytes are in a holder's memory, for a reader that fetches them itself."""

    agent: Annotated[str, Field(max_length=1 << 18)]  # NIXL's metadata of the holder, base64
    pieces: tuple[tuple[_Address, Count], ...]  # address and bytes, in the order of the wire


class Answer(Message):
    """Yes, and how many bytes follow or are where; or no, and why."""

    ok: bool
    reason: Annotated[str, Field(max_length=1000)] = ""
    bytes_total: Annotated[int, Field(ge=0)] = 0
    remote: Remote | None = None  # then no bytes follow


_QUESTION: Final[TypeAdapter[ReadRequest | PinQuery]] = TypeAdapter(
    Annotated[ReadRequest | PinQuery, Field(discriminator="kind")]
)


def framed(message: Message) -> bytes:
    """Return a message as it goes over the wire."""
    body = message.model_dump_json().encode()
    return LENGTH.pack(len(body)) + body


def length(header: bytes) -> int:
    """Return the length of the message that follows a header; ProtocolError if it is none."""
    size: int = LENGTH.unpack(header)[0]
    if size > MOST_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {size} bytes; expected at most {MOST_MESSAGE_BYTES}")
    return size


def parse_question(body: bytes) -> ReadRequest | PinQuery:
    """Return what a reader asks; ProtocolError names the field that is wrong."""
    try:
        return _QUESTION.validate_json(body)
    except ValidationError as error:
        raise ProtocolError(faults_of(error, "message", most=1)) from error


def parse_answer(body: bytes) -> Answer:
    """Return what a holder answered; ProtocolError names the field that is wrong."""
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        raise ProtocolError(faults_of(error, "message", most=1)) from error


def grant(secret: bytes, export_id: str, blocks: Sequence[int]) -> str:
    """Return a worker's mark on an export, hexadecimal: only who knows the secret can make it."""
    text = f"{export_id}:{','.join(map(str, blocks))}"
    return hmac.new(secret, text.encode(), sha256).hexdigest()


def slice_bytes(geometry: Geometry, heads: int) -> int:
    """Return the bytes of some heads of one layer in one block."""
    return heads * geometry.block_size * geometry.content * ITEM_BYTES[geometry.dtype]


def refusal(request: ReadRequest, secret: bytes, shard: Shard, geometry: Geometry) -> str:
    """Return why a worker gives nothing, or nothing. What passes names memory that the export holds.

    Model and numerics are not asked about here: they stand in the ticket, which the grant belongs to.
    """
    asked = Geometry(request.block_size, request.dtype, request.content)
    lo, hi = request.wanted
    if not hmac.compare_digest(request.grant, grant(secret, request.export_id, request.granted)):
        return "grant: not of this worker, or for other blocks"
    if asked != geometry:
        return f"layout: {asked} was asked for, here is {geometry}"
    if not lo < hi <= len(request.granted):
        return "wanted: not a range of the blocks that were granted"
    if request.head_lo < shard.head_lo or request.head_lo + request.head_n > shard.head_lo + shard.head_n:
        return f"heads: here are {shard.head_lo} to {shard.head_lo + shard.head_n - 1}"
    if len(set(request.layers)) != len(request.layers) or not set(request.layers) <= set(shard.layers):
        return "layers: not all of them are here, or one is asked for twice"
    return ""
