"""Faults on the connections between engines: iptables rules, in a chain of the soak's own.

Engines speak TLS with each other and tickets say at which address, so no proxy can stand between. Instead each engine
gets a loopback address of its own for what others read from it, and packets to and from it are dropped or refused.
Rules are about these addresses only. What an earlier run left, because it was killed, goes at the start of the next.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

from e2e.soak.interruptions import BETWEEN_ENGINES, Fault

Command = tuple[str, ...]
IPTABLES: Final = ("iptables", "-w", "10")
_DROP: Final = ("-j", "DROP")
# Resets themselves come through, or nobody would learn of them.
_RESET: Final = ("--tcp-flags", "RST", "NONE", "-j", "REJECT", "--reject-with", "tcp-reset")
# At loopback's MTU a packet may have 64 KiB, so a burst is more than that.
_SLOW: Final = ("--hashlimit-above", "100kb/s", "--hashlimit-burst", "200kb")


def rules(chain: str, fault: Fault, address: str) -> tuple[Command, ...]:
    """Return the commands that make a fault on the connections to an address."""
    to, of = ("-A", chain, "-p", "tcp", "-d", address), ("-A", chain, "-p", "tcp", "-s", address)
    match fault:
        case Fault.KV_DROP:
            return (*to, *_DROP), (*of, *_DROP)
        case Fault.KV_HALF_OPEN:
            return ((*of, *_DROP),)
        case Fault.KV_RESET:
            return (*to, *_RESET), (*of, *_RESET)
        case Fault.KV_THROTTLE:
            return ((*of, "-m", "hashlimit", *_SLOW, "--hashlimit-name", chain, *_DROP),)
        case _:
            raise ValueError(f"fault: {fault} is none between engines")


def opening(chain: str) -> tuple[Command, ...]:
    """Return the commands that make the chain and have packets come by."""
    return ("-N", chain), ("-I", *_jump(chain))


def closing(chain: str) -> tuple[Command, ...]:
    """Return the commands that take the chain away; each may find nothing."""
    return ("-D", *_jump(chain)), ("-F", chain), ("-X", chain)


def _jump(chain: str) -> Command:
    # On arrival, not on leaving: who sends is to learn nothing.
    return ("INPUT", "-i", "lo", "-m", "comment", "--comment", chain, "-j", chain)


def iptables(command: Command) -> str:
    """Run one command; return what it complains of."""
    try:
        subprocess.run((*IPTABLES, *command), check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    except subprocess.CalledProcessError as error:
        return error.stderr.decode(errors="replace").strip() or f"it ended with {error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


class Firewall:
    """The faults of one soak; a context, that leaves no rule behind."""

    def __init__(self, root: Path, run: Callable[[Command], str] = iptables) -> None:
        """`root`: of the checkout; two checkouts have different chains and addresses."""
        digest = hashlib.sha256(str(root).encode()).digest()
        self.chain = f"medley-soak-{digest.hex()[:8]}"
        self._network = f"127.{64 + digest[0] % 128}.{digest[1]}"
        self._run = run
        self.obstacles: Mapping[Fault, str] = {}

    def __enter__(self) -> Self:
        """Find out which faults this machine can make."""
        self._close()
        complaints = [words for words in (self._run(each) for each in opening(self.chain)) if words]
        if complaints:
            self.obstacles = dict.fromkeys(sorted(BETWEEN_ENGINES), complaints[0])
            self._close()
            return self
        self.obstacles = {fault: words for fault in sorted(BETWEEN_ENGINES) if (words := self._tried(fault))}
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def possible(self) -> frozenset[Fault]:
        """Which faults this machine can make."""
        return BETWEEN_ENGINES - self.obstacles.keys()

    def address(self, number: int) -> str:
        """Return the address of an engine's own, by its number from 0."""
        return f"{self._network}.{number + 1}"

    def make(self, fault: Fault, address: str) -> None:
        """Begin a fault; AssertionError if it cannot be made although it could when this was opened."""
        for command in rules(self.chain, fault, address):
            if words := self._run(command):
                raise AssertionError(f"making {fault} at {address}: {words}")

    def mend(self) -> None:
        """End all faults."""
        if words := self._run(("-F", self.chain)):
            raise AssertionError(f"ending faults between engines: {words}")

    def _tried(self, fault: Fault) -> str:
        words = next((words for each in rules(self.chain, fault, self.address(0)) if (words := self._run(each))), "")
        self._run(("-F", self.chain))
        return words

    def _close(self) -> None:
        for command in closing(self.chain):
            self._run(command)  # what is not there need not go
