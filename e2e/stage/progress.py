"""What a person sees while the stage works: one line per task, with what it is doing and how long it took.

Used by `cli` (which makes one `Board`) and passed down as `Say`. On a terminal the lines move; elsewhere
each task prints two lines.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Say = Callable[[str], None]
"""Told what a task is doing now, in a few words."""


def silent(_: str) -> None:
    """Be a `Say` that nobody hears."""


class Board:
    """Tasks under way, shown on one console; safe to use from several threads."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._lock = threading.Lock()
        self._live: Progress | None = None
        self._open = 0

    @contextmanager
    def task(self, name: str) -> Generator[Say, None, None]:
        """Show a task from here to the end of the block; the value is its `Say`."""
        began = time.monotonic()
        live = self._enter()
        if live is None:
            self.console.print(f"  {name} …", highlight=False)
            say: Say = silent
        else:
            line = live.add_task(name, doing="")

            def say(doing: str) -> None:
                live.update(line, doing=doing[:60])

        failed = True
        try:
            yield say
            failed = False
        finally:
            if live is not None:
                live.remove_task(line)
            mark = "[red]✗[/red]" if failed else "[green]✓[/green]"
            self.console.print(f"{mark} {name}  [dim]{time.monotonic() - began:.1f} s[/dim]", highlight=False)
            self._leave()

    def _enter(self) -> Progress | None:
        with self._lock:
            self._open += 1
            if self._live is None and self.console.is_terminal:
                columns = (
                    SpinnerColumn(),
                    TextColumn("{task.description}"),
                    TextColumn("[dim]{task.fields[doing]}[/dim]"),
                )
                self._live = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
                self._live.start()
            return self._live

    def _leave(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._live is not None:
                self._live.stop()
                self._live = None
