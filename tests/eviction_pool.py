"""A pool of blocks that drives an eviction policy as the simulator does, for cases small enough to follow by hand.

Each chain's KV is one prefix. A request evicts until its missing blocks fit, then begins (its policy is told), runs at
once and releases its blocks (told again). Rows and memory come from `features.eviction_row` and `features.remember`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from saga_rl.policies import features as F
from saga_rl.policies.batch import score_rows
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state.tables import make_tables

MINE, HERE = slice(ch.MINE, ch.MINE + ch.REMEMBERED), slice(F.G_HERE, F.G_HERE + F.HERE)


@njit
def fill_rows(chains, tables, g, now, held, released, resident, out):
    for i in range(len(held)):
        c = held[i]
        F.eviction_row(chains, tables, g, 0, c, now, released[c], resident[c], 0.0, np.nan, out[i])


class EvictionPool:
    """`blocks` blocks of `block_tokens` tokens under the eviction policy `spec`; chains 0..chains - 1.

    `now` moves on by `tick_s` before each request. `misses` counts requests that lacked a block, `lacked` the blocks.
    """

    def __init__(self, spec: str, blocks: int, chains: int, *, block_tokens: int = 1, tick_s: float = 1.0) -> None:
        self.policy = make("eviction", spec)
        self.blocks, self.block, self.tick_s = blocks, block_tokens, tick_s
        self.chains, self.tables = ch.make_chains(chains), make_tables(1, 4, 1)
        self.g = F.make_g(1, block_tokens, blocks, self.policy)
        self.resident = np.zeros(chains)
        self.released = np.zeros(chains)
        self.order = np.zeros(chains, int)
        self.now, self.count, self.misses, self.lacked = 0.0, 0, 0, 0
        self._rows, self._scratch = np.zeros((chains, len(F.EVICTION))), np.zeros(self.policy.scratch)
        for c in range(chains):
            ch.describe(self.chains, c, c, c, 0.0, 0, 0, np.nan)

    def scores(self, held: np.ndarray) -> np.ndarray:
        out = np.zeros(len(held))
        fill_rows(self.chains, self.tables, self.g, self.now, held, self.released, self.resident, self._rows)
        score_rows(self.policy.score, self._rows, 0, len(held), self.policy.params, self._scratch, out)
        return out

    def score(self, c: int) -> float:
        return float(self.scores(np.array([c]))[0])

    def recency(self, c: int) -> float:
        self.score(c)
        return float(self._rows[0, F.EV.recency])

    def tell(self, c: int, event: int, blocks: float, total: float, score: float = 0.0) -> None:
        if self.policy.memory:
            last_s, row = self.released[c] if event == F.EVICT else self.now, self._rows[0]
            F.eviction_row(self.chains, self.tables, self.g, 0, c, self.now, last_s, self.resident[c], 0.0, np.nan, row)
            F.remember(self.chains, self.g, 0, c, row, event, float(blocks), float(total), score, self.policy.score,
                       self.policy.params, self._scratch)

    def mine(self, c: int) -> np.ndarray:
        """What the policy remembers of chain c."""
        return self.chains[c, MINE]

    def here(self) -> np.ndarray:
        """What it remembers of the worker."""
        return self.g[0, HERE]

    def victim_order(self) -> list[int]:
        """Chains with blocks, in the order in which they would go now."""
        held = np.flatnonzero(self.resident)
        return held[np.lexsort((self.order[held], -self.scores(held)))].tolist()

    def wait(self, c: int) -> None:
        """The next request of chain c is queued, behind those that wait already."""
        ahead = int(self.chains[:, ch.WAITING].sum())
        ch.arrive(self.chains, self.tables, 0, c, self.now, float(self.resident[c] * self.block))
        self.chains[c, ch.QPOS] = ahead

    def use(self, c: int, size: int = 1, *, tool: int = 0, ended: bool = False, preempted: bool = False,
            ) -> list[tuple[int, int]]:
        """A request of chain c that needs `size` blocks: who lost how many blocks, in order. preempted: it loses its
        place at once and waits again."""
        self.now += self.tick_s
        if not self.chains[c, ch.WAITING]:
            ch.arrive(self.chains, self.tables, 0, c, self.now, float(size * self.block))
        found = min(int(self.resident[c]), size)
        self.misses += found < size
        self.lacked += size - found
        mine, self.resident[c] = self.resident[c], 0.0  # what runs is no candidate
        self.g[0, F.G_USED] = 1.0 - (self.blocks - self.resident.sum() - mine) / self.blocks
        gone = self._make_room(size, mine)
        self.resident[c] = max(size, mine)
        ch.schedule(self.chains, c, self.now)
        self.tell(c, F.BEGIN, found, size)
        if preempted:
            ch.preempt(self.chains, c, self.now)
        else:
            ch.finish(self.chains, self.tables, 0, c, self.now, float(size * self.block), 0.0, tool, ended)
        self.count += 1
        self.released[c], self.order[c] = self.now, self.count
        self.tell(c, F.RELEASE, self.resident[c], self.resident[c])
        return gone

    def _make_room(self, size: int, mine: float) -> list[tuple[int, int]]:
        lack = int(max(size, mine) - (self.blocks - self.resident.sum()))
        gone: list[tuple[int, int]] = []
        if lack <= 0:
            return gone
        held = np.flatnonzero(self.resident)
        scores = self.scores(held)
        for i in np.lexsort((self.order[held], -scores)):
            c = int(held[i])
            taken = min(lack, int(self.resident[c]))
            self.resident[c] -= taken
            self.tell(c, F.EVICT, taken, self.resident[c], scores[i])
            gone.append((c, taken))
            lack -= taken
            if lack == 0:
                break
        return gone

    def play(self, string: list[int]) -> list[int]:
        """Requests of one block each: the victims in order."""
        return [c for name in string for c, _ in self.use(name)]
