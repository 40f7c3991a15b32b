"""Which replica holds the beginning of which prompt: this router's own guess at the engines' prefix caches.

Kept by `fleet`: what was sent to a replica is in its cache for a while. A trie over blocks of tokens, laid out flat: a
node is a chained hash of all blocks up to it, so a lookup is a step per block and a collision costs one prefill. Nodes
that were used longest ago are forgotten first, leaves before their parents; so memory is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

BLOCK_TOKENS = 32
MOST_BLOCKS = 65_536  # two million tokens; about 20 MB
# Of one prompt; the rest of a longer one follows its beginning.
_MOST_BLOCKS_OF_ONE = 512

Keys = tuple[int, ...]
_NOBODY: frozenset[str] = frozenset()


class PrefixIndex:
    """Blocks of prompts, and the replicas that were sent them."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._most_blocks = most_blocks
        self._nodes: OrderedDict[int, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def held(self, keys: Keys) -> dict[str, int]:
        """Return how many tokens of a prompt each replica holds from its beginning on; absent: none."""
        found: dict[str, int] = {}
        alive: set[str] = set()
        for depth, key in enumerate(keys):
            here = self._nodes.get(key, _NOBODY)
            for name in alive - here if depth else ():
                found[name] = depth * BLOCK_TOKENS
            alive = alive & here if depth else set(here)
            if not alive:
                break
        return found | dict.fromkeys(alive, len(keys) * BLOCK_TOKENS)

    def add(self, replica: str, keys: Keys) -> None:
        """Note that a replica has these blocks now."""
        for key in reversed(keys):  # so that a parent is younger than its children
            node = self._nodes.get(key)
            if node is None:
                node = self._nodes[key] = set()
            else:
                self._nodes.move_to_end(key)
            node.add(replica)
        while len(self._nodes) > self._most_blocks:
            self._nodes.popitem(last=False)

    def forget(self, replica: str) -> None:
        """Drop a replica that is gone."""
        for key in [key for key, names in self._nodes.items() if replica in names]:
            self._nodes[key].discard(replica)
            if not self._nodes[key]:
                del self._nodes[key]


def keys_of(tokens: Sequence[int], root: Collection[str] = ()) -> Keys:
    """Return the nodes of a prompt's whole blocks. `root`: what else its KV depends on (adapter, cache salt)."""
    keys: list[int] = []
    key = hash(tuple(root))
    for start in range(0, min(len(tokens) // BLOCK_TOKENS, _MOST_BLOCKS_OF_ONE) * BLOCK_TOKENS, BLOCK_TOKENS):
        key = hash((key, tuple(tokens[start : start + BLOCK_TOKENS])))
        keys.append(key)
    return tuple(keys)
