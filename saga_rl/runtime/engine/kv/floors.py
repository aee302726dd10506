"""KV floors: the evictable blocks that a request of another tenant must leave alone (`policies.constraints`).

A tenant has the evictable blocks that its chains released and the blocks that its requests hold. What it has above its
floor may go, in the eviction policy's order. vLLM asks for every running request in every step how much that is, so an
answer is no more exact than the question needs: most requests need no block.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping

from saga_rl.policies.constraints import MOST_FLOORS
from saga_rl.runtime.engine.kv.runs import Run, Runs

log = logging.getLogger("vllm.saga_rl")


class Floors:
    """shares: of the pool, by tenant name, "*" for every other one; codes: the tenants known so far, which grow;
    pinned: blocks of running requests by tenant's code. Together the floors never claim more than `MOST_FLOORS`: beyond
    that the tenants under "*" share equally what the named ones leave."""

    def __init__(self, shares: Mapping[str, float], codes: Mapping[str, int], pool_blocks: int,
                 pinned: Callable[[], Mapping[int, int]]) -> None:
        self.shares, self.codes, self.pool_blocks, self.pinned = shares, codes, pool_blocks, pinned
        self.breaks = 0
        """Blocks that were taken from within a floor: nothing else could have made room."""
        self._blocks: dict[int, int] = {}
        self._known = 0
        self._shrunk = False
        self.walks = 0
        """Times that all runs were looked at, for tests."""
        self._based: dict[int, int] = {}
        """By tenant: blocks of runs that others are built on, as of `_builds`."""
        self._builds = -1
        self._exact: dict[int, tuple[int, int]] = {}
        """By the tenant that asked: (takeable, blocks that had gone by then)."""

    def blocks(self) -> dict[int, int]:
        """Blocks that each known tenant keeps, by its code."""
        if self._known != len(self.codes):
            self._known = len(self.codes)
            others = [t for t in self.codes if t not in self.shares]
            left = MOST_FLOORS - sum(share for t, share in self.shares.items() if t != "*")
            each = min(self.shares.get("*", 0.0), max(left, 0.0) / max(len(others), 1))
            if each < self.shares.get("*", 0.0) and not self._shrunk:
                self._shrunk = True
                log.warning("saga-rl: KV floors: %d tenants share %.2f of the pool, so each keeps less than %g from "
                            "now on", len(others), max(left, 0.0), self.shares["*"])
            self._blocks = {code: math.floor(self.shares.get(t, each) * self.pool_blocks)
                            for t, code in self.codes.items()}
        return self._blocks

    def spare(self, runs: Runs, tenant: int) -> dict[int, int]:
        """How many evictable blocks of other tenants may go for a request of `tenant`; of tenants left out, all."""
        idle, pinned = runs.idle, self.pinned()
        out = {}
        for other, floor in self.blocks().items():
            if other != tenant and idle[other] > (spare := max(idle[other] + pinned.get(other, 0) - floor, 0)):
                out[other] = spare
        return out

    def changed(self) -> None:
        """Blocks were let go of: what was counted before is no lower bound any more."""
        self._exact.clear()

    def takeable(self, runs: Runs, tenant: int, evictable: int, at_least: float = math.inf, gone: int = 0) -> int:
        """Of the `evictable` blocks, how many can go for a request of `tenant`, in whatever order they go; or any lower
        number that is at least `at_least`. gone: evictable blocks that were taken or used again so far.

        A block within a floor also keeps what it was built on. So a tenant that may lose some blocks is counted with
        what can be reached while all others that are limited keep everything.
        """
        if at_least <= 0:
            return 0
        known = self._exact.get(tenant)
        if known is not None and known[0] - (gone - known[1]) >= at_least:
            return known[0] - (gone - known[1])
        spare, idle = self.spare(runs, tenant), runs.idle
        if not spare or not runs.on:
            return evictable - sum(idle[t] - n for t, n in spare.items())
        if (low := self._at_least(runs, spare)) >= at_least:
            return low
        total = self._walk(runs, spare)
        self._exact[tenant] = total, gone
        return total

    def _at_least(self, runs: Runs, spare: Mapping[int, int]) -> int:
        """What can go of runs that nothing is built on. (Those may have become more since they were counted.)"""
        if self._builds != runs.builds:
            self._builds = runs.builds
            bases = {run for base in runs.on if (run := runs.of[base]) is not None}
            self._based = Counter()
            for run in bases:
                self._based[run.tenant] += run.num_free_blocks
        return sum(min(max(n - self._based.get(t, 0), 0), spare.get(t, n)) for t, n in runs.idle.items())

    def _walk(self, runs: Runs, spare: Mapping[int, int]) -> int:
        self.walks += 1
        total = sum(self._movable(runs, set(spare)).values())
        for other, n in spare.items():
            if n:
                movable = self._movable(runs, set(spare) - {other})
                total += min(n, sum(m for run, m in movable.items() if run.tenant == other))
        return total

    def _movable(self, runs: Runs, fixed: set[int]) -> dict[Run, int]:
        """How many blocks from each run's front can go while the `fixed` tenants lose none."""
        can = {run: 0 if run.tenant in fixed else run.num_free_blocks for run in runs.all()}
        changed = True
        while changed:
            changed = False
            for base, built in runs.on.items():
                run = runs.of[base]
                if run is None or can[run] == 0 or all(self._goes(runs, block, can) for block in built):
                    continue
                at = _place(run, base, can[run])
                changed |= at < can[run]
                can[run] = at
        return can

    def _goes(self, runs: Runs, block_id: int, can: Mapping[Run, int]) -> bool:
        run = runs.of[block_id]
        return run is None or can[run] == run.num_free_blocks or _place(run, block_id, can[run]) < can[run]


def _place(run: Run, block_id: int, most: int) -> int:
    """Which one the block is from the run's front; `most` if it is not among the first `most`."""
    return next((at for at, block in zip(range(most), run, strict=False) if block.block_id == block_id), most)
