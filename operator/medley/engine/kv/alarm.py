"""Rings at a time, in a thread of its own: an idle engine core sleeps, and leases end all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Alarm:
    """One time at which to ring; setting it again replaces it."""

    def __init__(self, ring: Callable[[], None], clock: Callable[[], float]) -> None:
        self._ring, self._clock = ring, clock
        self._changed = threading.Condition()
        self._at: float | None = None
        self._closed = False
        threading.Thread(target=self._wait, name="medley-kv-alarm", daemon=True).start()

    def set(self, at: float | None) -> None:
        """Ring once at this time of the clock; None: not at all."""
        with self._changed:
            self._at = at
            self._changed.notify()

    def close(self) -> None:
        """Never ring again."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _wait(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                left = None if self._at is None else self._at - self._clock()
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                self._at = None
            self._ring()
