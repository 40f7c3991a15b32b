"""One line per record on standard error, with time, level and logger; called by the composition roots once."""

from __future__ import annotations

import logging
import time


def configure(level: str) -> None:
    """Log from `level` (DEBUG, INFO, WARNING, ERROR) up, in UTC."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf says at INFO what it watches and at DEBUG each event: the passes say what matters.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLogger().level))
    # It runs beside the main thread on purpose, where it cannot have the signals.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
