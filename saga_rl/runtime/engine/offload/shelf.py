"""Which chain the chunks of vLLM's CPU tier belong to: what an eviction policy scores there instead of runs of blocks.

A slot is one chain's part of the tier; what another chain used before it is a slot of its own (shared). `table` and
`owned` have the columns that `victims.Victims` reads of an engine's runs. Within a slot chunks stand in the order in
which they may go: what the chain used longest ago first, of one context the deepest first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.kv.runs import BLOCKS, CHAIN, COLUMNS, LAST_S
from saga_rl.runtime.sessions.tracker import NOBODY, Tracker

Part = tuple[int, int, bool]
"""(row, session's number, shared): rows are used again, numbers are not."""


class Shelf:
    """Slots of one tier, as many as chains have chunks there."""

    leaves = False
    """Nothing here is known to be left behind, see `Runs`."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.table = np.zeros((64, COLUMNS))
        """One row a slot; BLOCKS is 0 where there is none."""
        self.owned = np.zeros(len(tracker.chains))
        """Chunks by chain."""
        self.keys: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(64)]
        self._part: list[Part | None] = [None] * 64
        self._slot: dict[Part, int] = {}
        self._at: dict[bytes, int] = {}
        self._free = list(range(63, -1, -1))
        self._seq = 0

    def __len__(self) -> int:
        return len(self._at)

    def chain_of(self, key: bytes) -> int:
        """Row of the chain that used this chunk last; -1 if it is not on the shelf."""
        slot = self._at.get(key)
        part = None if slot is None else self._part[slot]
        return -1 if part is None else part[0]

    def used(self, keys: Iterable[bytes], chain: int, now: float) -> None:
        """Chain `chain` used these chunks of the tier, head first. Nobody known: who used them before keeps them."""
        number = int(self.tracker.chains[chain, ch.SESSION])
        for key in reversed(list(keys)):
            old = self._at.get(key)
            if old is not None and chain == NOBODY:
                continue
            if old is None:
                shared = False
            else:
                part = self._part[old]
                assert part is not None
                shared = part[2] or (part[:2] != (chain, number) and part[0] != NOBODY)
            slot = self._open((chain, number, shared), now)
            if old == slot:
                self.keys[slot].move_to_end(key)
            else:
                self.gone(key)
                self.keys[slot][key] = None
                self._at[key] = slot
                self._count(slot, 1)
            self.table[slot, LAST_S] = now

    def gone(self, key: bytes) -> None:
        """The chunk is not in the tier any more."""
        slot = self._at.pop(key, None)
        if slot is not None:
            del self.keys[slot][key]
            self._count(slot, -1)

    def clear(self) -> None:
        self.__init__(self.tracker)  # type: ignore[misc]

    def slots(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.table[:, BLOCKS])

    def forgotten(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whose row belongs to another session by now: nobody was heard of for so long that it was given away."""
        rows = self.table[slots, CHAIN].astype(np.int64)
        numbers = np.array([0 if (p := self._part[s]) is None else p[1] for s in slots.tolist()])
        return self.tracker.chains[rows, ch.SESSION] != numbers

    # ------------------------------------------------------------------ slots
    def _open(self, part: Part, now: float) -> int:
        slot = self._slot.get(part)
        if slot is None:
            if not self._free:
                n = len(self.table)
                self.table, self._part = np.concatenate([self.table, np.zeros((n, COLUMNS))]), self._part + [None] * n
                self.keys += [OrderedDict() for _ in range(n)]
                self._free = list(range(2 * n - 1, n - 1, -1))
            slot = self._slot[part] = self._free.pop()
            self._part[slot] = part
            self.table[slot] = part[0], now, 0.0, part[2], self._seq, 0.0
            self._seq += 1
        return slot

    def _count(self, slot: int, n: int) -> None:
        chain = int(self.table[slot, CHAIN])
        if len(self.owned) < len(self.tracker.chains):
            self.owned = np.concatenate([self.owned, np.zeros(len(self.tracker.chains) - len(self.owned))])
        self.owned[chain] += n
        self.table[slot, BLOCKS] += n
        if self.table[slot, BLOCKS] == 0:
            part = self._part[slot]
            assert part is not None
            del self._slot[part]
            self._part[slot] = None
            self._free.append(slot)
