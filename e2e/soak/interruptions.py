"""Which interruption comes next: drawn from its number alone, so that a resumed soak goes on with the same ones."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

NOTICES_S = (0.0, 0.5, 2.0, 5.0, 15.0)


class End(StrEnum):
    """How a replica goes at its deadline."""

    CUT = "cut"  # every connection of it ends; its process lives, and comes back as a new replica
    KILL = "kill"  # SIGKILL at a random moment of the notice
    TARGET_KILL = "target-kill"  # as CUT, and SIGKILL for the replica that its streams move to


class Fault(StrEnum):
    """What goes wrong on the way meanwhile, for a few seconds."""

    NONE = "none"
    RESET = "reset"  # connections are reset
    DROP = "drop"  # nothing comes through, and nobody says so
    HALF_OPEN = "half-open"  # what engines say is lost, what routers say is not
    THROTTLE = "throttle"
    FREEZE = "freeze"  # SIGSTOP: the machine stands still, its sockets live


@dataclass(frozen=True, slots=True)
class Interruption:
    """One replica goes."""

    number: int
    notice_s: float
    end: End
    end_at: float  # 0..1 of the notice; of KILL and TARGET_KILL
    fault: Fault
    fault_at: float  # 0..1 of the notice
    fault_s: float
    fault_on_target: bool
    late_s: float  # after the end, until the router is told of it
    pause_s: float  # before the next


def draw(number: int, *, kills: float, seed: int = 1) -> Interruption:
    """Return the interruption of this number; `kills`: the part of all that kill a process."""
    chance = random.Random(f"{seed}:{number}")
    fault = chance.choices(list(Fault), weights=[55, 9, 9, 9, 9, 9])[0]
    killed = chance.random() < kills
    return Interruption(
        number=number,
        notice_s=chance.choice(NOTICES_S),
        end=End.CUT if not killed else chance.choice([End.KILL, End.KILL, End.TARGET_KILL]),
        end_at=chance.random(),
        fault=fault,
        fault_at=chance.random(),
        fault_s=chance.uniform(0.3, 7.0),
        fault_on_target=chance.random() < 0.5,
        late_s=chance.choice([0.0, 0.3, 2.0]),
        pause_s=chance.uniform(0.1, 1.0),
    )
