"""Text grows piece by piece and never says anything that it takes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.core.errors import InvalidInputError
from medley.router.text import _BYTE_OF, Piece, TextRules, TextStream, Vocabulary
from tests.router.stub_engine import EOS, TOKENIZER, VOCABULARY

VOCAB = Vocabulary(TOKENIZER.to_str())
SPECIAL = {0: "<s>", 1: "</s>", 2: "<pad>"}


def ids(text):
    return TOKENIZER.encode(text).ids


PLAIN = TextRules()


def stream(rules=PLAIN, prompt=(5,)):
    return TextStream(VOCAB, prompt, rules)


@given(st.text())
def test_whole_characters_come_out_as_they_are(text):
    one_by_one = stream()
    assert "".join(one_by_one.push([token]).text for token in ids(text)) + one_by_one.rest() == text


@given(st.text(), st.text(min_size=1, max_size=5), st.booleans(), st.lists(st.integers(1, 6), min_size=1))
def test_a_stop_string_ends_the_text_wherever_events_end(text, stop, include, sizes):
    rules = TextRules(stop=(stop,), include_stop=include)
    found = text.find(stop)
    expected = text if found < 0 else text[: found + (len(stop) if include else 0)]
    tokens, got, met, turn = ids(text), "", None, 0
    growing = stream(rules)
    while tokens and met is None:
        size = sizes[turn % len(sizes)]
        piece = growing.push(tokens[:size])
        got, met = got + piece.text, piece.stop
        assert expected.startswith(got)
        tokens, turn = tokens[size:], turn + 1
    assert (got + growing.rest(), met) == (expected, stop if found >= 0 else None)


def test_the_stop_string_that_ends_first_wins():
    assert stream(TextRules(stop=("quick fox", "ick"))).push(ids("the quick fox")) == Piece(
        "the qu", 9, "ick", excess=3
    )


def test_tokens_after_the_one_that_completes_a_stop_string_do_not_count():
    assert stream(TextRules(stop=("b",))).push(ids("abcdef")) == Piece("a", 2, "b", excess=1)


def test_a_stop_string_within_the_least_tokens_does_not_count():
    rules = TextRules(stop=("b",), min_tokens=3)
    assert stream(rules).push(ids("abcdeb")) == Piece("abcde", 6, "b", excess=1)


def test_only_what_may_begin_a_stop_string_is_held_back():
    growing = stream(TextRules(stop=("END",)))
    assert [growing.push(ids(part)).text for part in ("xE", "N", "x", "E")] == ["x", "", "ENx", ""]
    assert growing.rest() == "E"


BYTES = {byte: TOKENIZER.token_to_id(character) for character, byte in _BYTE_OF.items()}


@pytest.mark.parametrize(
    ("prompt", "made", "expected"),
    [
        ("na\u00e9".encode()[:-1], "\u00e9".encode()[1:] + b"x", "\u00e9x"),
        ("na\u00e9".encode()[:-1], b"x", "x"),
        ("na\u00e9".encode()[:-1], b"\xc3\xa9", "\u00e9"),
        (b"a\x80", b"x", "x"),
        (b"a\x80\xc3", b"\xa9", "\u00e9"),
        (b"\x80" * 20, b"x", "x"),
        (b"ab", b"\x80x", "\ufffdx"),
        ("\U0001f600".encode()[:2], "\U0001f600".encode()[2:], "\U0001f600"),
    ],
    ids=["ended", "left", "anew", "stray", "stray and ended", "all stray", "stray in the answer", "two of four"],
)
def test_nothing_of_a_prompt_that_ends_within_a_character_is_said_again(prompt, made, expected):
    growing = stream(prompt=[BYTES[byte] for byte in prompt])
    assert "".join(growing.push([BYTES[byte]]).text for byte in made) == expected


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1), st.data())
def test_a_text_cut_at_any_byte_goes_on_with_the_character_that_was_begun(text, data):
    coded = [BYTES[byte] for byte in text.encode()]
    cut = data.draw(st.integers(0, len(coded) - 1))
    whole = len(text.encode()[:cut].decode(errors="ignore"))
    growing = stream(prompt=coded[:cut])
    assert "".join(growing.push([token]).text for token in coded[cut:]) == text[whole:]


def test_special_tokens_are_skipped_unless_wanted():
    tokens = [*ids("a"), EOS, *ids("b")]
    assert stream().push(tokens).text == "ab"
    assert stream(TextRules(skip_special_tokens=False)).push(tokens).text == "a</s>b"


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "ab")])
def test_a_stop_token_is_text_only_if_the_client_wants_it(include, text):
    assert stream(TextRules(include_stop=include)).push(ids("ab"), stopped=True).text == text


def test_half_a_character_at_the_end_is_not_shown():
    growing = stream()
    assert growing.push(ids("aü")[:-1]).text + growing.rest() == "a"


def test_a_token_spells_its_true_bytes():
    assert [VOCAB.token(token) for token in [EOS, *ids("aü")]] == [
        ("</s>", b"</s>"),
        ("a", b"a"),
        ("\N{REPLACEMENT CHARACTER}", b"\xc3"),
        ("\N{REPLACEMENT CHARACTER}", b"\xbc"),
    ]


def test_every_token_can_be_read():
    assert b"".join(VOCAB.token(token)[1] for token in range(3, 3 + 256)) != b""
    assert {VOCAB.token(token)[1] for token in range(VOCABULARY)} >= {bytes([n]) for n in range(256)}


def test_a_file_that_is_no_tokenizer_is_refused():
    with pytest.raises(InvalidInputError, match=r"tokenizer\.json: not a tokenizer"):
        Vocabulary("{}")
