"""How a request's KV cache is handed from one engine to another: tickets, and the endpoints that give them.

`POST /medley/v1/export` (`ExportRequest` -> `Exported`) pins the blocks of running requests and answers a `Ticket` for
each. A router sends a ticket on to another engine in `kv_transfer_params` of `POST /inference/v1/generate`:

    {"token_ids": ..., "sampling_params": {...}, "kv_transfer_params": {"medley": <Ticket>}}

beside whatever says how the request is resumed (wire/resume.py, or prompt + committed as the prompt). That engine pulls
the blocks from the first one's workers and computes the rest; whatever goes wrong, it computes everything. So a ticket
is never needed, only useful. Read by routers and by the engine's plugin; docs/migration.md tells the whole protocol.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from struct import pack
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from medley.core.service import MigrationMode
from medley.wire.assignment import Message

EXPORT_PATH: Final = "/medley/v1/export"
RENEW_PATH: Final = "/medley/v1/renew"
RELEASE_PATH: Final = "/medley/v1/release"
STATE_PATH: Final = "/medley/v1/kv"
TICKET_PARAMETER: Final = "medley"  # in kv_transfer_params

MOST_LEASE_S: Final = 600.0
MOST_REQUESTS: Final = 4096  # of one export
MOST_BLOCKS: Final = 1 << 18  # four million tokens in blocks of 16
MOST_LAYERS: Final = 1024
MOST_WORKERS: Final = 1024
# Bytes of an element, by PyTorch's name of the type.
ITEM_BYTES: Final = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "uint8": 1, "int8": 1,
}  # fmt: skip

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Host = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[0-9A-Za-z.:_%-]+$")]
_Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=0, le=1 << 31)]
_Size = Annotated[int, Field(ge=1, le=1 << 31)]
ExportId = Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{1,64}$")]
_RequestId = Annotated[str, Field(min_length=1, max_length=512)]
_Lease = Annotated[float, Field(gt=0, le=MOST_LEASE_S, allow_inf_nan=False)]


class Source(Message):
    """One worker of the exporting engine: the slices of the KV cache that it holds, and where it serves them."""

    host: _Host
    port: _Port
    pp: Count  # pipeline and tensor rank
    tp: Count
    layers: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(min_length=1, max_length=MOST_LAYERS)
    ]
    head_lo: Count  # first KV head, by its index in the whole model
    head_n: Annotated[int, Field(ge=1, le=4096)]
    grant: Digest  # the worker's own mark: it gives these blocks for this export, and no others


class Pins(Message):
    """Where the exporting engine answers whether an export is still pinned."""

    host: _Host
    port: _Port


class Ticket(Message):
    """The right to read one request's KV cache until its lease ends, and all that must agree for it to be of use."""

    version: Literal[1] = 1
    export_id: ExportId
    request_id: _RequestId  # as the router named it
    valid_tokens: Count  # positions 0 .. valid_tokens - 1 are in the blocks; 0: nothing to carry
    tokens: Digest  # `history_digest` of the tokens at those positions
    block_size: _Size  # tokens
    blocks: Annotated[tuple[Count, ...], Field(max_length=MOST_BLOCKS)]  # the same in every worker, by position
    dtype: Annotated[str, Field(max_length=32)]  # of an element, PyTorch's name
    content: _Size  # elements of one head at one position: K and V together
    numerics: Digest  # of all that decides which numbers an engine computes; equal digests may exchange KV
    model: Digest  # identity of configuration and weights
    lease_s: _Lease  # from the answer on
    pins: Pins | None = None
    sources: Annotated[tuple[Source, ...], Field(max_length=MOST_WORKERS)] = ()

    @model_validator(mode="after")
    def _blocks_cover_the_tokens(self) -> Self:
        if len(self.blocks) != -(-self.valid_tokens // self.block_size):
            raise ValueError(f"blocks: {len(self.blocks)} of {self.block_size} for {self.valid_tokens} tokens")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError("blocks: a block occurs twice")
        if self.valid_tokens and not (self.sources and self.pins):
            raise ValueError("sources, pins: missing, although there are tokens to carry")
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"dtype: expected one of {', '.join(ITEM_BYTES)}, got {self.dtype!r}")
        return self

    @property
    def kv_bytes(self) -> int:
        """Bytes of all blocks in all workers, about what a target without any of it pulls."""
        per_head = self.content * ITEM_BYTES[self.dtype] * self.block_size
        held = {(source.layers, source.head_lo, source.head_n) for source in self.sources}  # some hold the same
        return len(self.blocks) * per_head * sum(len(layers) * heads for layers, _, heads in held)


class ExportRequest(Message):
    """Pin these requests' blocks; `keep_running` leaves them running (pre-copy), else they end with `abort`."""

    requests: Annotated[tuple[_RequestId, ...], Field(max_length=MOST_REQUESTS)] | None = None  # None: all
    keep_running: bool = False
    lease_s: _Lease = 30.0


class Exported(Message):
    """A ticket for each request that was there, and the ids of those that were not (finished, or never known)."""

    tickets: tuple[Ticket, ...]
    unknown: tuple[str, ...] = ()


class RenewRequest(Message):
    """Let these exports live for `lease_s` from now. May be repeated."""

    exports: Annotated[tuple[ExportId, ...], Field(max_length=MOST_REQUESTS)]
    lease_s: _Lease = 30.0


class ReleaseRequest(Message):
    """Give these exports' blocks back. May be repeated."""

    exports: Annotated[tuple[ExportId, ...], Field(max_length=MOST_REQUESTS)]


class Held(Message):
    """Answer to both: the exports that were there, and those that were not (released, run out, or never known)."""

    exports: tuple[str, ...]
    unknown: tuple[str, ...] = ()


class KvState(Message):
    """Answer of `GET /medley/v1/kv`."""

    mode: MigrationMode  # in force: Live or Auto when KV is carried, Resume when not
    capable: bool  # whether this engine exports, and takes tickets of engines with equal `numerics`
    reason: str = ""  # why not
    takes_outputs: bool = False  # whether committed tokens may come back as outputs: `Capability.RESUME_EXACT`
    numerics: str = ""
    block_size: int = 0  # tokens
    bytes_per_token: int = 0  # of KV cache, over all workers
    total_blocks: int = 0
    free_blocks: int = 0
    pinned_blocks: int = 0  # held by exports alone or with running requests
    exports: int = 0


def history_digest(token_ids: Sequence[int], extras: Sequence[str] = ()) -> str:
    """Return the digest of a prefix: its token ids, and what else its KV depends on (images, adapter, salt)."""
    digest = sha256(json.dumps(list(extras), separators=(",", ":")).encode())
    digest.update(pack(f"<{len(token_ids)}Q", *token_ids))
    return digest.hexdigest()
