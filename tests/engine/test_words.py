"""The message of a failed engine is vLLM's own error, not its last line."""

import pytest

from medley.engine.words import bare_line, last_words

OUT_OF_MEMORY = """(APIServer pid=7) INFO 11-21 11:40:01 [api_server.py:1400] vLLM API server version 0.32.0
(EngineCore pid=31) ERROR 11-21 11:41:01 [core.py:1200] EngineCore failed to start.
(EngineCore pid=31) ERROR 11-21 11:41:01 [core.py:1200] Traceback (most recent call last):
(EngineCore pid=31) ERROR 11-21 11:41:01 [core.py:1200]   File "core.py", line 10, in run
(EngineCore pid=31) ERROR 11-21 11:41:01 [core.py:1200] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "api_server.py", line 5, in <module>
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
USAGE = """usage: api_server.py [-h] [--model MODEL]
api_server.py: error: unrecognized arguments: --no-such-option
"""
VALUE = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (9999) is greater than the derived max_model_len
"""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (OUT_OF_MEMORY, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."),
        (USAGE, "api_server.py: error: unrecognized arguments: --no-such-option"),
        (VALUE, ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, "
                "User-specified max_model_len (9999) is greater than the derived max_model_len")),
        ("RuntimeError: Engine core initialization failed. x", "RuntimeError: Engine core initialization failed. x"),
        ("one\ntwo\n\nthree\nfour\n", "two / three / four"),
        ("", ""),
    ],
    ids=["out of memory", "usage", "validation", "hearsay alone", "no error", "nothing"],
)  # fmt: skip
def test_the_last_words_are_the_cause(log, words):
    assert last_words(log.splitlines()) == words


def test_words_are_short():
    assert len(last_words(["ValueError: " + "x" * 10_000])) == 600


def test_prefixes_go():
    assert bare_line("(Worker_TP1 pid=44) INFO 11-21 11:41:01 [loader.py:30] Loading took 3 s") == "Loading took 3 s"
