"""Distributions of request sizes to begin with, by name: `chat`, `code`, `summarization`.

Called by `question` for a forecast that names a preset. Each is a count of real requests over the grid of the Mélange
paper (figure 5; rows are input ranges, columns output ranges), so inputs and outputs stay as correlated as they were.

* `chat`: the conversation trace of Azure LLM inference 2023, all 19,366 requests.
* `code`: the code-completion trace of the same data set, all 8,819 requests.
  Both: Microsoft Azure, AzurePublicDataset, CC-BY 4.0; described in Splitwise (arXiv 2311.18677).
* `summarization`: arXiv papers and their summaries in Llama 2 tokens, all 28,257 requests, as counted for Vidur
  (arXiv 2405.05465; MIT).

Outputs are the lengths that were generated; a client's max_tokens, by which a router classes a request, is larger. That
is the thin spot of a forecast; measured traffic takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from medley.core.errors import InvalidInputError
from medley.core.service import Histogram
from medley.core.workload import MELANGE_GRID

# Sizes rarer than this are left out: a forecast shall not ask for a profile of a size that was seen once.
RAREST = 1e-3

COUNTS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "chat": (
        (0, 23, 138, 0, 0, 0),
        (53, 26, 157, 1, 0, 0),
        (176, 421, 1547, 40, 7, 0),
        (160, 3191, 1680, 14, 2, 0),
        (4, 412, 212, 740, 61, 0),
        (1, 916, 967, 5107, 555, 0),
        (3, 679, 452, 6, 0, 0),
        (10, 1364, 223, 13, 4, 0),
        (0, 0, 0, 0, 0, 0),
        (0, 1, 0, 0, 0, 0),
    ),
    "code": (
        (103, 30, 4, 0, 0, 0),
        (427, 80, 7, 3, 1, 0),
        (585, 122, 31, 3, 2, 2),
        (451, 144, 22, 10, 0, 0),
        (940, 247, 48, 10, 3, 0),
        (1654, 413, 62, 13, 4, 0),
        (1650, 358, 70, 14, 13, 0),
        (979, 256, 47, 8, 3, 0),
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0),
    ),
    "summarization": (
        (0, 2, 1, 1, 5, 111),
        (2, 3, 5, 3, 5, 225),
        (0, 9, 9, 6, 5, 205),
        (1, 29, 56, 13, 14, 250),
        (2, 191, 500, 122, 28, 267),
        (17, 1071, 2882, 859, 134, 135),
        (60, 3774, 13023, 3758, 381, 48),
        (2, 43, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0),
    ),
}


def preset(name: str) -> Histogram:
    """Return the distribution of a preset. Raises InvalidInputError for a name that is not there."""
    counts = COUNTS.get(name)
    if counts is None:
        raise InvalidInputError(
            "spec.workload.distribution.preset", f"no preset named {name!r}; there are: {', '.join(sorted(COUNTS))}"
        )
    fewest = RAREST * sum(map(sum, counts))
    return Histogram(
        MELANGE_GRID, tuple(tuple(float(count) if count >= fewest else 0.0 for count in row) for row in counts)
    )
