"""Finish, carry or re-prefill: what becomes of all streams of one replica that has to go, and in which order they go.

The router calls `choose` at a notice and again while it stands. Two things are scarce. The way out of the leaving
replica: bytes that are not through before the deadline were moved in vain. And room on the targets: running slots and
KV blocks. Within both, as many streams as possible get a place, and then the sum of their pauses is made smallest.

* A stream that surely ends in time stays.
* A **carried** stream pauses for the hand-over and its last block only, since everything before is copied while it
  flows; but all its bytes, those of the tokens made until the cut included, have to pass the link.
* A **re-prefilled** stream pauses for the prefill of all it has; if its sampling counts outputs and the target cannot
  take them back, also for making them again.
* Everything is cut as late as it may (SpotServe's just-in-time arrangement): what the leaving replica still makes is
  free. Cuts are staggered, carries by their turn on the link and prefills by the target's time, so pauses do not add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from medley.planning.departure import (
    NONE,
    TRUSTED_FRACTION,
    Carry,
    Departure,
    Finish,
    Refill,
    Stay,
    ends_in_time,
    latest_cut,
)

# Where nothing was measured yet. Both on the slow side: a carry that is not tried costs one prefill.
ASSUMED_PREFILL_TOKENS_PER_S = 2_000.0
ASSUMED_BYTES_PER_S = 100e6  # a shared gigabit
# Search steps after which the best plan so far is taken, and how many streams are searched over; the rest, the
# smallest, get the best place that is left. Small cases are solved exactly; a large one holds the router for a few ms.
MOST_STEPS = 800
MOST_SEARCHED = 100


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream on the leaving replica."""

    id: str
    context_tokens: int  # prompt and committed: what a target has to hold
    made_tokens: int  # of them, those that were generated; 0: nothing is lost by going at once
    remaining_tokens: int  # at most
    per_token: timedelta | None  # measured; None: not yet
    counts_outputs: bool = False  # its sampling depends on which tokens are outputs
    adapter: str | None = None  # LoRA adapter that it needs; None: the model itself
    copied: Mapping[str, int] = field(default_factory=dict)  # tokens that a target has already, by target


@dataclass(frozen=True, slots=True)
class Target:
    """A replica that could take streams."""

    name: str
    slots: int  # requests that it may take beyond those it has
    free_tokens: int | None = None  # of KV cache; None: not known, then only slots bound it
    block_tokens: int = 16
    prefill_tokens_per_s: float | None = None  # measured; None: not yet
    carries: bool = False  # it takes tickets of the leaving replica: both capable, with equal numerics
    takes_outputs: bool = False  # committed tokens may come back as outputs
    leaves: bool = False
    adapters: frozenset[str] = frozenset()  # LoRA adapters that it serves


@dataclass(frozen=True, slots=True)
class Link:
    """The way out of the leaving replica."""

    bytes_per_token: int  # of KV cache
    bytes_per_s: float = ASSUMED_BYTES_PER_S
    # What a carry costs beyond a call to the target, which a prefill needs as well: an export between two of the
    # source's steps, and a load before one of the target's.
    handover: timedelta = timedelta(milliseconds=50)


@dataclass(frozen=True, slots=True)
class _Option:
    """One thing that could be done with one stream."""

    target: int
    carry: bool
    pause_s: float
    link_s: float  # of the link until the cut
    last_s: float  # of it, after the last copy
    tokens: int  # of KV cache on the target, whole blocks


@dataclass(slots=True)
class _Room:
    """What is left of the scarce things."""

    link_s: float
    slots: list[int]
    tokens: list[float]

    def fits(self, option: _Option) -> bool:
        return (
            self.slots[option.target] > 0
            and self.tokens[option.target] >= option.tokens
            and self.link_s >= option.link_s
        )

    def best_first(self, options: Sequence[_Option]) -> list[_Option]:
        """Order what fits: the shortest pause, then what is copied already, then where most is free."""
        return sorted(
            filter(self.fits, options),
            key=lambda each: (each.pause_s, each.link_s, -self.tokens[each.target], -self.slots[each.target]),
        )

    def take(self, option: _Option, sign: int = 1) -> None:
        self.slots[option.target] -= sign
        self.tokens[option.target] -= sign * option.tokens
        self.link_s -= sign * option.link_s


def choose(
    streams: Sequence[Stream],
    targets: Sequence[Target],
    link: Link | None,
    *,
    left: timedelta,
    notice_time: timedelta,
) -> dict[str, Departure]:
    """Return what to do with each stream, by id, in the order in which they leave.

    `link` is None if the leaving replica exports nothing. `left` is the time until the deadline (negative: it passed),
    `notice_time` how much there was when the notice came. A leaving target is never chosen.
    """
    chosen: dict[str, Departure] = {}
    moving: list[Stream] = []
    for stream in streams:
        if ends_in_time(remaining_tokens=stream.remaining_tokens, per_token=stream.per_token, left=left):
            chosen[stream.id] = Finish()
        else:
            moving.append(stream)
    open_targets = sorted((each for each in targets if not each.leaves), key=lambda each: each.name)
    cut = latest_cut(left=left, notice_time=notice_time)
    # The largest first: they are hardest to place, and a prefill saved for them is worth most. Of equals, who may make
    # most is least likely to end by itself.
    moving.sort(key=lambda each: (-each.context_tokens, -each.remaining_tokens, each.id))
    options = [_options(each, open_targets, link, cut) for each in moving]
    room = _Room(
        max(left * TRUSTED_FRACTION, NONE).total_seconds(),
        [each.slots for each in open_targets],
        [float("inf") if each.free_tokens is None else each.free_tokens for each in open_targets],
    )
    picked = _Search(options[:MOST_SEARCHED], room).best()
    for option in picked:
        if option is not None:
            room.take(option)
    for rest in options[MOST_SEARCHED:]:
        option = next(iter(room.best_first(rest)), None)
        picked.append(option)
        if option is not None:
            room.take(option)
    planned = [(stream, option) for stream, option in zip(moving, picked, strict=True) if option is not None]
    carried = [(stream, option) for stream, option in planned if option.carry]
    last = max(cut, left * TRUSTED_FRACTION)  # with little time, turns are taken in what is left of it
    chosen |= _carries(carried, open_targets, cut, last)
    for index, target in enumerate(open_targets):
        refilled = [(each, option) for each, option in planned if not option.carry and option.target == index]
        chosen |= _refills(refilled, target.name, cut, last)
    chosen |= {stream.id: Stay() for stream in moving if stream.id not in chosen}
    return dict(sorted(chosen.items(), key=lambda item: _when(item[1])))


def remaining_room(
    targets: Sequence[Target], streams: Sequence[Stream], chosen: Mapping[str, Departure]
) -> list[Target]:
    """Return the targets less what was given to the streams of one leaving replica, for the next one."""
    taken = {each.name: [0, 0] for each in targets}
    blocks = {each.name: each.block_tokens for each in targets}
    for stream in streams:
        match chosen[stream.id]:
            case Carry(target=name) | Refill(target=name):
                taken[name][0] += 1
                taken[name][1] += _whole_blocks(stream.context_tokens + 1, blocks[name])
            case _:
                pass
    return [
        replace(
            each,
            slots=each.slots - taken[each.name][0],
            free_tokens=None if each.free_tokens is None else each.free_tokens - taken[each.name][1],
        )
        for each in targets
    ]


def _options(stream: Stream, targets: Sequence[Target], link: Link | None, cut: timedelta) -> list[_Option]:
    """Return what can be done with a stream."""
    found: list[_Option] = []
    for index, target in enumerate(targets):
        if stream.adapter is not None and stream.adapter not in target.adapters:
            continue
        tokens = _whole_blocks(stream.context_tokens + 1, target.block_tokens)
        refill = _Option(index, carry=False, pause_s=_refill_s(stream, target), link_s=0.0, last_s=0.0, tokens=tokens)
        found.append(refill)
        if link is not None and target.carries and (target.takes_outputs or not stream.counts_outputs):
            carry = _carry(stream, target, index, link, cut)
            if stream.made_tokens and carry.pause_s <= refill.pause_s:
                found.append(carry)
    return found


def _carry(stream: Stream, target: Target, index: int, link: Link, cut: timedelta) -> _Option:
    """Return a carry: bulk copied ahead, what is made until the cut copied once more, the last blocks at the cut."""
    per_token_s = (stream.per_token or NONE).total_seconds()
    token_s = link.bytes_per_token / link.bytes_per_s
    bulk = max(stream.context_tokens - stream.copied.get(target.name, 0), 0)
    grown = 0.0 if per_token_s <= 0 else min(stream.remaining_tokens, cut.total_seconds() / per_token_s)
    # While what had grown is copied, more grows; a block is the least that moves.
    last = target.block_tokens + (0.0 if per_token_s <= 0 else (bulk + grown) * token_s / per_token_s)
    last = min(last, bulk + grown + target.block_tokens)
    return _Option(
        index,
        carry=True,
        pause_s=link.handover.total_seconds() + last * token_s,
        link_s=(bulk + grown + last) * token_s,
        last_s=last * token_s,
        tokens=_whole_blocks(stream.context_tokens + 1, target.block_tokens),
    )


def _refill_s(stream: Stream, target: Target) -> float:
    """Return the pause of a stream that is computed again."""
    prefill = stream.context_tokens / (target.prefill_tokens_per_s or ASSUMED_PREFILL_TOKENS_PER_S)
    if stream.counts_outputs and not target.takes_outputs:
        return prefill + stream.made_tokens * (stream.per_token or NONE).total_seconds()
    return prefill


def _whole_blocks(tokens: int, block: int) -> int:
    return -(-tokens // block) * block


class _Search:
    """Depth first, the best options first: the first descent is a greedy plan, the rest of the steps improve it."""

    def __init__(self, options: Sequence[Sequence[_Option]], room: _Room) -> None:
        self._options, self._room = options, room
        self._steps = 0
        self._picked: list[_Option | None] = [None] * len(options)
        self._best: tuple[int, float, list[_Option | None]] | None = None
        # The least that the streams from n on can pause for; bounds the search.
        self._least = [0.0] * (len(options) + 1)
        for n in range(len(options) - 1, -1, -1):
            self._least[n] = self._least[n + 1] + min((each.pause_s for each in options[n]), default=0.0)

    def best(self) -> list[_Option | None]:
        """Return an option, or None, for each stream."""
        self._descend(0, 0, 0.0)
        assert self._best is not None
        return self._best[2]

    def _descend(self, n: int, stayed: int, pause_s: float) -> None:
        if self._best is not None:
            most_stayed, most_pause, _ = self._best
            bound = pause_s + self._least[n] if stayed == most_stayed else pause_s
            if stayed > most_stayed or (stayed == most_stayed and bound >= most_pause - 1e-9):
                return
            if self._steps >= MOST_STEPS:
                return
        self._steps += 1
        if n == len(self._options):
            self._best = (stayed, pause_s, list(self._picked))
            return
        for option in self._room.best_first(self._options[n]):
            self._room.take(option)
            self._picked[n] = option
            self._descend(n + 1, stayed, pause_s + option.pause_s)
            self._room.take(option, -1)
        self._picked[n] = None
        self._descend(n + 1, stayed + 1, pause_s)


def _carries(
    planned: Sequence[tuple[Stream, _Option]], targets: Sequence[Target], cut: timedelta, last: timedelta
) -> dict[str, Departure]:
    """Time the carries on the one link: copies at once, those that save most first; cuts as late as they may."""
    copies: dict[str, float] = {}
    used = 0.0
    for stream, option in planned:  # largest first
        copies[stream.id] = used
        used += option.link_s - option.last_s
    # Who may make most is least likely to end by itself, so it goes first.
    order = sorted(planned, key=lambda each: (-each[0].remaining_tokens, each[0].id))
    begin = max(cut.total_seconds() - sum(option.last_s for _, option in order), 0.0)
    chosen: dict[str, Departure] = {}
    for stream, option in order:
        after = min(begin, last.total_seconds())
        chosen[stream.id] = Carry(
            targets[option.target].name, timedelta(seconds=copies[stream.id]), timedelta(seconds=after)
        )
        begin += option.last_s
    return chosen


def _refills(
    planned: Sequence[tuple[Stream, _Option]], target: str, cut: timedelta, last: timedelta
) -> dict[str, Departure]:
    """Time the prefills of one target one after the other; what has made nothing yet goes at once."""
    chosen: dict[str, Departure] = {each.id: Refill(target, NONE) for each, _ in planned if not each.made_tokens}
    order = sorted(
        ((each, option) for each, option in planned if each.made_tokens),
        key=lambda each: (-each[0].remaining_tokens, each[0].id),
    )
    begin = max(cut.total_seconds() - sum(option.pause_s for _, option in order[:-1]), 0.0)
    for stream, option in order:
        chosen[stream.id] = Refill(target, timedelta(seconds=min(begin, last.total_seconds())))
        begin += option.pause_s
    return chosen


def _when(departure: Departure) -> timedelta:
    match departure:
        case Carry(cut_after=after) | Refill(cut_after=after):
            return after
        case Finish() | Stay():
            return timedelta.max
