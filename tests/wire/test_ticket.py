"""A ticket that contradicts itself is no ticket."""

import pytest
from pydantic import ValidationError

from medley.wire.ticket import ExportRequest, Source, Ticket, history_digest

DIGEST = "ab" * 32


def source(**changes) -> Source:
    return Source(
        **{
            "host": "10.0.0.1",
            "port": 4000,
            "pp": 0,
            "tp": 0,
            "layers": ("a", "b"),
            "head_lo": 0,
            "head_n": 2,
            "grant": DIGEST,
        }
        | changes
    )


def ticket(**changes) -> dict:
    return {
        "export_id": "e-1", "request_id": "r", "valid_tokens": 33, "tokens": DIGEST, "block_size": 32, "blocks": [7, 9],
        "dtype": "float32", "content": 128, "numerics": DIGEST, "model": DIGEST, "lease_s": 30.0,
        "pins": {"host": "10.0.0.1", "port": 4001}, "sources": [source().model_dump()],
    } | changes  # fmt: skip


def test_a_ticket_survives_json_and_counts_its_bytes():
    one = Ticket.model_validate(ticket())
    assert Ticket.model_validate_json(one.model_dump_json()) == one
    assert one.kv_bytes == 2 * 32 * 128 * 4 * (2 * 2)  # blocks x positions x content x bytes x (layers x heads)


def test_bytes_are_counted_once_where_ranks_repeat_heads():
    repeated = [source(tp=tp, head_lo=tp // 2, head_n=1).model_dump() for tp in range(4)]
    assert Ticket.model_validate(ticket(sources=repeated)).kv_bytes == Ticket.model_validate(ticket()).kv_bytes


def test_a_request_without_kv_has_a_ticket_too():
    nothing = Ticket.model_validate(ticket(valid_tokens=0, blocks=[], sources=[], pins=None))
    assert nothing.kv_bytes == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blocks": [7]}, "blocks: 1 of 32 for 33 tokens"),
        ({"blocks": [7, 9, 11]}, "blocks: 3 of 32 for 33 tokens"),
        ({"blocks": [7, 7]}, "a block occurs twice"),
        ({"sources": []}, "sources, pins: missing"),
        ({"pins": None}, "sources, pins: missing"),
        ({"dtype": "complex64"}, "dtype: expected one of float32"),
        ({"version": 2}, "version"),
        ({"export_id": "../e"}, "export_id"),
        ({"blocks": [-1, 2]}, "blocks"),
        ({"lease_s": float("nan")}, "lease_s"),
        ({"lease_s": 1e9}, "lease_s"),
        ({"sources": [source().model_dump() | {"port": 0}]}, "port"),
        ({"sources": [source().model_dump() | {"host": "a b"}]}, "host"),
        ({"more": 1}, "more"),
    ],
    ids=str,
)
def test_refusals_name_the_field(change, named):
    with pytest.raises(ValidationError, match=named.replace("(", "\\(")):
        Ticket.model_validate(ticket(**change))


def test_a_digest_depends_on_every_token_their_order_and_what_else_the_kv_depends_on():
    digests = {
        history_digest(tokens, extras)
        for tokens in ([1, 2, 3], [1, 3, 2], [1, 2], [1, 2, 3, 0], [258, 3], [])
        for extras in ((), ("adapter a",), ("adapter b",), ("adapter a", ""))
    }
    assert len(digests) == 6 * 4
    assert history_digest([1, 2], ["x"]) == history_digest((1, 2), ("x",))


def test_an_export_asks_for_all_unless_told():
    assert ExportRequest() == ExportRequest(requests=None, keep_running=False, lease_s=30)
    with pytest.raises(ValidationError, match="lease_s"):
        ExportRequest(lease_s=0)
