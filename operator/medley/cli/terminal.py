"""What the commands print to: a terminal as wide as it is, or a pipe, which has no width. Called by every command.

Tables are never broken in a pipe; sentences are, as a page is.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable

from rich.console import Console

_ENDLESS = 100_000  # columns: nothing is broken, and tables are as wide as what is in them
_PAGE = 100  # columns of sentences where there is no terminal


def out() -> Console:
    """Return the console of answers."""
    return Console(width=None if sys.stdout.isatty() else _ENDLESS)


def aside() -> Console:
    """Return the console of what is to be said beside the answer."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _ENDLESS)


def wrapped(sentence: str, console: Console) -> str:
    """Return a sentence in lines as wide as the terminal, those after the first indented; names stay whole."""
    width = console.width if console.is_terminal else _PAGE
    lines = textwrap.wrap(sentence, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def show(table: Callable[[Console], None]) -> None:
    """Print an answer for people; into a pipe without the blanks that fill up a table's last column."""
    console = out()
    if console.is_terminal:
        table(console)
        return
    with console.capture() as held:
        table(console)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in held.get().splitlines())
