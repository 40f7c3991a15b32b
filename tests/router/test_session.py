"""One choice over engines that break anywhere: what the client gets is what an uninterrupted run gives, each token once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.router.session import (
    FRUITLESS_ATTEMPTS,
    Abandon,
    Broken,
    Cause,
    Choice,
    Deliver,
    Finish,
    Issue,
    Placed,
    ResumeMode,
    Seek,
    conversation,
    resume_mode,
    resumes_exactly,
)
from medley.router.text import TextRules, TextStream, Vocabulary
from medley.wire.generate import EngineFault, Rendered, TokenEvent, TokenLogprob
from tests.router.stub_engine import TOKENIZER, VOCABULARY, continued, reference

VOCAB = Vocabulary(TOKENIZER.to_str())
PROMPT = (5, 6, 7)
PLAIN = TextRules()
INCAPABLE = Placed(resumes_output=False)


def choice(max_tokens=20, sampling=None, rules=PLAIN, min_tokens=0, prompt=PROMPT):
    rendered = Rendered(tuple(prompt), max_tokens, min_tokens, {"temperature": 0, **(sampling or {})}, {})
    return Choice("id", rendered, seed=11, rules=rules)


def talking(asked, vocabulary=VOCAB):
    return conversation(asked, TextStream(vocabulary, asked.rendered.token_ids, asked.rules))


@dataclass
class Client:
    """Drives a conversation as the carrier does, over engines whose breaks are given."""

    breaks: list[tuple[int, Cause]] = field(default_factory=list)  # tokens until each attempt breaks, and how
    sizes: list[int] = field(default_factory=lambda: [1])  # tokens per event, in turn
    resumes_output: bool = False
    different: bool = False  # each engine computes otherwise
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    end: Finish | Abandon | None = None

    def run(self, asked: Choice, vocabulary: Vocabulary = VOCAB) -> Client:
        talk = talking(asked, vocabulary)
        command = next(talk)
        while True:
            match command:
                case Seek():
                    command = talk.send(Placed(self.resumes_output))
                case Issue():
                    self.issues.append(command)
                    events = self._engine(command, len(self.issues))
                    command = talk.send(next(events))
                case Deliver():
                    self._take(command)
                    command = talk.send(next(events))
                case Finish():
                    self._take(command)
                    self.end = command
                    return self
                case Abandon():
                    self.end = command
                    return self

    def _take(self, part):
        self.text += part.text
        self.tokens += part.token_ids
        self.logprobs += part.logprobs

    def _engine(self, issue, attempt):
        call = issue.call
        sampling = json.loads(call.body())["sampling_params"]
        done = sampling.get("extra_args", {}).get("resume_output_token_ids", [])
        assert not done or self.resumes_output
        counts = bool(sampling.get("presence_penalty") or sampling.get("structured_outputs"))
        seed = attempt if self.different else sampling["seed"]
        tokens = list(continued(call.token_ids, done, sampling["max_tokens"] - len(done), seed, outputs_count=counts))
        until, cause = self.breaks[attempt - 1] if attempt <= len(self.breaks) else (len(tokens) + 1, None)
        made, turn = 0, 0
        while made < len(tokens):
            size = min(self.sizes[turn % len(self.sizes)], len(tokens) - made)
            turn += 1
            if made + size > until:
                yield Broken(cause, accepted=cause is not Cause.UNREACHABLE)
            part = tokens[made : made + size]
            made += size
            yield TokenEvent(
                part,
                "length" if made == len(tokens) else None,
                None,
                tuple(TokenLogprob(t, -0.5, ((t, -0.5),)) for t in part),
            )
        yield Broken(Cause.CONNECTION, accepted=True)


def texts(tokens, prompt=PROMPT, rules=PLAIN):
    stream = TextStream(VOCAB, prompt, rules)
    return stream.push(tokens).text + stream.rest()


BREAKS = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([Cause.CONNECTION, Cause.SILENCE, Cause.NOTICE, Cause.UNREACHABLE])),
    max_size=6,
)
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(
    # One that replays what is committed may break before its first new token, however many tokens it made.
    BREAKS.filter(lambda b: sum(c in (Cause.CONNECTION, Cause.SILENCE) for _, c in b) < FRUITLESS_ATTEMPTS),
    SIZES,
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([{}, {"presence_penalty": 0.5}, {"structured_outputs": {"json": {}}}]),
)
def test_every_cut_gives_the_tokens_of_an_uninterrupted_run_once(breaks, sizes, count, resumes_output, sampling):
    # Attempts shorter than one event make no progress, however many tokens they may make.
    breaks = [(max(k, *sizes) if k else 0, cause) for k, cause in breaks]
    client = Client(breaks, sizes, resumes_output).run(choice(count, sampling))
    expected = reference(PROMPT, count, seed=11, outputs_count=bool(sampling))
    assert (client.tokens, client.text, client.end.finish_reason) == (expected, texts(expected), "length")
    assert [entry.token_id for entry in client.logprobs] == expected


@given(BREAKS, SIZES, st.text(alphabet="the quicklazyEND fo", min_size=1, max_size=4), st.booleans())
def test_a_stop_string_is_met_where_it_would_be_met_without_cuts(breaks, sizes, stop, include):
    rules = TextRules(stop=(stop,), include_stop=include)
    breaks = [(max(k, *sizes), cause) for k, cause in breaks]
    whole = Client().run(choice(60, rules=rules))
    cut = Client(breaks, sizes).run(choice(60, rules=rules))
    assert (cut.text, cut.tokens) == (whole.text, whole.tokens)
    assert (cut.end.finish_reason, cut.end.stop_reason) == (whole.end.finish_reason, whole.end.stop_reason)


def test_the_next_engine_is_asked_only_for_what_is_missing():
    client = Client([(4, Cause.CONNECTION)]).run(choice(10, min_tokens=7))
    first, second = (issue.call for issue in client.issues)
    assert (list(first.token_ids), first.sampling) == (
        [5, 6, 7],
        {"temperature": 0, "seed": 11, "max_tokens": 10, "min_tokens": 7},
    )
    assert (list(second.token_ids), second.sampling) == (
        [5, 6, 7, *client.tokens[:4]],
        {"temperature": 0, "seed": 11, "max_tokens": 6, "min_tokens": 3},
    )
    assert [issue.mode for issue in client.issues] == [None, ResumeMode.PROMPT]


def test_an_engine_that_can_takes_the_tokens_back_as_outputs():
    client = Client([(4, Cause.CONNECTION)], resumes_output=True).run(choice(10, {"presence_penalty": 1.0}))
    second = client.issues[1].call
    assert list(second.token_ids) == [5, 6, 7]
    assert second.sampling == {
        "temperature": 0,
        "presence_penalty": 1.0,
        "seed": 11,
        "max_tokens": 10,
        "min_tokens": 0,
        "extra_args": {"resume_output_token_ids": client.tokens[:4]},
    }


@pytest.mark.parametrize(
    ("sampling", "resumes_output", "mode", "exact"),
    [
        pytest.param({"temperature": 0}, False, ResumeMode.PROMPT, True, id="greedy"),
        pytest.param({"temperature": 1}, False, ResumeMode.PROMPT, False, id="sampled"),
        pytest.param({}, False, ResumeMode.PROMPT, False, id="vLLM's default is to sample"),
        pytest.param({"temperature": 1}, True, ResumeMode.OUTPUT, True, id="sampled, capable engine"),
        pytest.param({"temperature": 1, "presence_penalty": 1}, False, ResumeMode.REPLAY, True, id="penalty"),
        pytest.param(
            {"temperature": 1, "structured_outputs": {"regex": "a"}}, False, ResumeMode.REPLAY, True, id="grammar"
        ),
        pytest.param({"temperature": 0, "bad_words": ["x y"]}, False, ResumeMode.REPLAY, True, id="bad words"),
        pytest.param(
            {"temperature": 0, "repetition_penalty": 1.3}, False, ResumeMode.PROMPT, True, id="counts the prompt"
        ),
        pytest.param({"temperature": 0, "presence_penalty": 0.0}, False, ResumeMode.PROMPT, True, id="no penalty"),
    ],
)
def test_how_a_request_is_resumed_depends_on_what_its_sampling_remembers(sampling, resumes_output, mode, exact):
    assert resume_mode(sampling, resumes_output=resumes_output) is mode
    assert resumes_exactly(sampling, resumes_output=resumes_output) is exact


def test_a_replay_that_diverges_continues_by_prompt_and_never_changes_what_was_delivered():
    client = Client([(4, Cause.CONNECTION)], different=True).run(choice(10, {"presence_penalty": 1.0}))
    assert client.tokens[:4] == reference(PROMPT, 4, seed=1, outputs_count=True)
    assert [issue.mode for issue in client.issues] == [None, ResumeMode.REPLAY, ResumeMode.PROMPT]
    assert len(client.tokens) == 10
    assert isinstance(client.end, Finish)


def test_a_grammar_whose_replay_diverges_is_an_error_and_not_broken_json():
    client = Client([(4, Cause.CONNECTION)], different=True).run(choice(10, {"structured_outputs": {"json": {}}}))
    assert client.end == Abandon(
        EngineFault(502, "the structured output could not be continued on another engine; ask again", None)
    )


def test_a_request_that_breaks_engine_after_engine_without_a_token_is_given_up():
    client = Client([(0, Cause.CONNECTION)] * 50).run(choice())
    message = "5 attempts broke without a token, the last one by connection; not trying further engines"
    assert (client.end, len(client.issues)) == (Abandon(EngineFault(502, message, None)), FRUITLESS_ATTEMPTS)


@pytest.mark.parametrize("cause", [Cause.NOTICE, Cause.UNREACHABLE])
def test_breaks_that_are_not_the_requests_fault_are_not_counted(cause):
    client = Client([(0, cause)] * 50).run(choice(5))
    assert client.tokens == reference(PROMPT, 5, seed=11)


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        pytest.param(TokenEvent([9], "abort", None, ()), Cause.ABORTED, id="aborted: its last token does not count"),
        pytest.param(TokenEvent([], "error", None, ()), Cause.ENGINE_ERROR, id="finish reason error"),
        pytest.param(EngineFault(500, "boom", None), Cause.ENGINE_ERROR, id="error event"),
        pytest.param(EngineFault(401, "key", None), Cause.ENGINE_ERROR, id="wrong key: another engine may know it"),
    ],
)
def test_an_engine_that_gives_up_is_replaced(event, cause):
    talk = talking(choice(3))
    next(talk)
    talk.send(INCAPABLE)
    assert talk.send(event) == Seek(resuming=True, cause=cause)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_request_at_fault_ends_at_once(code):
    talk = talking(choice(3))
    next(talk)
    talk.send(INCAPABLE)
    fault = EngineFault(code, "token id 9 is out of vocabulary", "prompt")
    assert talk.send(fault) == Abandon(fault)


def test_a_fault_after_tokens_were_delivered_is_the_engines():
    talk = talking(choice(3))
    next(talk)
    talk.send(INCAPABLE)
    talk.send(TokenEvent([9], None, None, ()))
    assert talk.send(EngineFault(400, "too long here", None)) == Seek(resuming=True, cause=Cause.ENGINE_ERROR)


def test_a_stop_token_ends_the_text_before_itself():
    talk = talking(choice(5))
    next(talk)
    talk.send(INCAPABLE)
    word = VOCABULARY - 1
    assert talk.send(TokenEvent([word, word], "stop", 9, ())) == Finish(
        VOCAB.token(word)[0], [word, word], (), "stop", 9, ended=True
    )


def test_more_tokens_than_asked_for_are_not_delivered():
    talk = talking(choice(2))
    next(talk)
    talk.send(INCAPABLE)
    end = talk.send(TokenEvent([70, 71, 72], None, None, ()))
    assert (end.token_ids, end.finish_reason) == ([70, 71], "length")
