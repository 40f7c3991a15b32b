"""Which interruption comes next: drawn from its number alone, so that a resumed soak goes on with the same ones."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

# Seconds -> weight. Most nodes of most clouds leave without or with little of a notice's use; long ones take the time.
NOTICES_S = {0.0: 25, 0.5: 25, 2.0: 25, 5.0: 15, 15.0: 10}
AFTER_THE_CUT_S = 1.5  # in which a target may still be killed: streams begin there anew


class End(StrEnum):
    """How a replica goes at its deadline."""

    CUT = "cut"  # every connection of it ends; its process lives, and comes back as a new replica
    KILL = "kill"  # SIGKILL at a random moment of the notice
    TARGET_KILL = "target-kill"  # as CUT, and SIGKILL for the replica that its streams move to


class Fault(StrEnum):
    """What goes wrong on the way meanwhile, for a few seconds."""

    NONE = "none"
    # Between the router and an engine
    RESET = "reset"  # connections are reset
    DROP = "drop"  # nothing comes through, and nobody says so
    HALF_OPEN = "half-open"  # what engines say is lost, what routers say is not
    THROTTLE = "throttle"
    FREEZE = "freeze"  # SIGSTOP: the machine stands still, its sockets live
    # Between engines: on the connections by which others read the leaving one's blocks
    KV_RESET = "kv-reset"
    KV_DROP = "kv-drop"
    KV_HALF_OPEN = "kv-half-open"
    KV_THROTTLE = "kv-throttle"


BETWEEN_ENGINES = frozenset({Fault.KV_RESET, Fault.KV_DROP, Fault.KV_HALF_OPEN, Fault.KV_THROTTLE})
_WEIGHTS = {fault: 40 if fault is Fault.NONE else 8 if fault in BETWEEN_ENGINES else 5 for fault in Fault}


@dataclass(frozen=True, slots=True)
class Interruption:
    """One replica goes."""

    number: int
    notice_s: float
    end: End
    end_at: float  # 0..1 of the time in which the process may be killed
    fault: Fault
    fault_at: float  # 0..1 of the notice
    fault_s: float
    fault_on_target: bool
    late_s: float  # after the end, until the router is told of it
    pause_s: float  # before the next

    def kill_at_s(self, notice_s: float) -> float | None:
        """Return when a process is killed, in seconds from a notice of this length; None: none is."""
        match self.end:
            case End.CUT:
                return None
            case End.KILL:
                return self.end_at * notice_s
            case End.TARGET_KILL:
                return self.end_at * (notice_s + AFTER_THE_CUT_S)


def draw(
    number: int, *, kills: float, seed: int = 1, between_engines: Collection[Fault] = BETWEEN_ENGINES
) -> Interruption:
    """Return the interruption of this number.

    `kills`: the part of all that kill a process. `between_engines`: which faults between engines this machine can make.
    """
    chance = random.Random(f"{seed}:{number}")
    notice_s = chance.choices(list(NOTICES_S), weights=list(NOTICES_S.values()))[0]
    # Without a notice nothing is read between engines.
    possible = [each for each in Fault if each not in BETWEEN_ENGINES or (notice_s and each in between_engines)]
    fault = chance.choices(possible, weights=[_WEIGHTS[each] for each in possible])[0]
    killed = chance.random() < kills
    # A source that is killed without a notice is no other than one whose connections end.
    kinds = [End.KILL, End.KILL, End.TARGET_KILL] if notice_s else [End.TARGET_KILL]
    long = chance.random() < 0.3  # longer than a transfer may be silent
    return Interruption(
        number=number,
        notice_s=notice_s,
        end=End.CUT if not killed else chance.choice(kinds),
        end_at=chance.random(),
        fault=fault,
        fault_at=chance.random(),
        fault_s=chance.uniform(5.5, 8.0) if long else chance.uniform(0.3, 3.0),
        fault_on_target=chance.random() < 0.5,
        late_s=chance.choice([0.0, 0.3, 2.0]),
        pause_s=chance.uniform(0.1, 1.0),
    )
