"""`python -m e2e.soak`: so many interruptions in all; 0 only if nothing was ever lost, doubled, changed or leaked."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from e2e.soak.drive import Wanted, soak
from e2e.soak.ledger import Ledger


def main() -> int:
    """Soak, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m e2e.soak", description=__doc__)
    parser.add_argument("--interruptions", type=int, default=1000, help="in all, those of earlier runs included")
    parser.add_argument("--engine", choices=("vllm", "stub"), default="vllm")
    parser.add_argument("--engines", type=int, default=3, help="processes: while one starts, two go on")
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--tokens", type=int, help="of the longest stream; 120 of vllm, 300 of stub")
    parser.add_argument("--calm", type=int, default=150, help="the first interruptions, which kill no process")
    parser.add_argument("--kills", type=float, default=0.125, help="part of the others that kill a process")
    given = parser.parse_args()
    vllm = given.engine == "vllm"
    wanted = Wanted(
        interruptions=given.interruptions,
        kind=given.engine,
        engines=given.engines,
        streams=given.streams,
        tokens=given.tokens or (120 if vllm else 300),
        calm=given.calm,
        kills=given.kills,
    )
    with tempfile.TemporaryDirectory(prefix="medley-soak-") as folder:
        try:
            ledger = asyncio.run(_until_told(wanted, Path(folder)))
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM
    sys.stdout.write(_said(ledger))
    return 0 if ledger.clean else 1


async def _until_told(wanted: Wanted, folder: Path) -> Ledger:
    """Soak; at SIGTERM take engines and rules away, as at the end."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await soak(wanted, folder)


def _said(ledger: Ledger) -> str:
    counted = (
        ("interruptions", ledger.interruptions),
        ("seconds", round(ledger.seconds)),
        ("notices", dict(ledger.notices)),
        ("ends", dict(ledger.ends)),
        ("faults", dict(ledger.faults)),
        ("SIGKILLs", ledger.sigkills),
        ("streams", f"{ledger.streams} ({ledger.slow_readers} read slowly)"),
        ("tokens", ledger.tokens),
        ("departures", dict(ledger.departures)),
        ("resumes", dict(ledger.resumes)),
        ("loads of blocks", dict(ledger.loads)),
        ("broken streams", ledger.broken),
        ("tokens lost, duplicated, differing", f"{ledger.lost}, {ledger.duplicated}, {ledger.differing}"),
        ("engines that died by themselves", ledger.deaths),
        ("blocks, files, MiB leaked", f"{ledger.leaked_blocks}, {ledger.leaked_files}, {ledger.leaked_mib}"),
        ("most MiB of a porter, and resident", f"{ledger.porter_mib}, {ledger.porter_rss_mib}"),
    )
    lines = [*(f"{what}: {value}" for what, value in counted), *ledger.failures]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
