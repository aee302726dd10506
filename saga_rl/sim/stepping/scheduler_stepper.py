"""A closed-loop run that stops at every decision of a scheduler: placement, who enters from a queue, whose blocks go.

The first two are those of `PlacementStepper` and `QueueStepper`. The third comes when a worker is about to compose an
iteration, knows whom it lets in, and has fewer free blocks than that will take (`wanted`): one decision names the
candidate that loses tail blocks, as many as are wanted but at least `evict_blocks`, if it and what was released in one
run with it have them. A candidate without another beside it is taken without asking. What is evicted otherwise, within
floors (`policies.constraints`) or after a preemption, goes by the eviction policy and is counted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.policies.base import Policy, PolicySet
from saga_rl.policies.features import EVICTION
from saga_rl.sim.cluster import ALL, CHOOSE, ENDED, EVICT, PLACE
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.compiled.refs import unowned
from saga_rl.sim.config import SimConfig
from saga_rl.sim.stepping.queue_stepper import OFFERED, QueueStepper
from saga_rl.sim.stepping.replay_stepper import entry_point
from saga_rl.sim.stepping.victims import OFFERED as VICTIMS
from saga_rl.sim.stepping.victims import make_victims, take_on, unasked


def _take(world, victims, chosen, least):
    return take_on(world, unowned(victims), chosen, least)


def check_eviction(policy: Policy) -> None:
    """`UserError` for a policy that cannot stand in for an agent that evicts."""
    for what, wrong in (("remembers what it evicted", policy.memory), ("must know the future", policy.oracle),
                        ("frees chains when their TTL runs out", policy.drop_expired)):
        if wrong:
            raise UserError(f"eviction policy {policy.name!r}", f"{what}, but here the agent evicts",
                            "name policies with another one, such as lru or saga+")


class SchedulerStepper(QueueStepper):
    """`reset()`, then `advance(row)` until it returns False; `HOLD` where `decision` is `CHOOSE`.

    decision: `PLACE`, `CHOOSE`, `EVICT` or `ENDED`. policies: as for `QueueStepper`; its placement is not asked, its
    eviction only where the agent is not. max_rows: rows of a decision, one of which, in a queue, stands for nobody.
    Raises `UserError` for an eviction policy with memory or literal TTL, or an oracle.
    """

    pause = ALL

    def __init__(self, trace: Trace, config: SimConfig, policies: PolicySet, max_rows: int = 32,
                 evict_blocks: int = 64) -> None:
        check_eviction(policies.eviction)
        informed = replace(policies, eviction=replace(policies.eviction, informed=True))
        super().__init__(trace, config, informed, max_rows - 1)
        self.max_rows, self.evict_blocks = max_rows, evict_blocks
        self.decision = ENDED

    def _open(self) -> None:
        super()._open()
        ref, segments = self._cluster.ref, len(self._cluster.world.tree.parent)
        self._taking = (ref, make_victims(segments, self.max_rows, len(EVICTION)))
        self._take = entry_point(compiled(_take, (*self._taking, -1, self.evict_blocks)))

    def advance(self, row: int) -> bool:
        """Place on worker `row`, let in the request of this row (or nobody: `HOLD`), or take blocks of its candidate,
        as `decision` says; True while a decision is wanted."""
        if self.decision == CHOOSE:
            return super().advance(row)
        if not 0 <= row < self.n_rows:
            raise ValueError(f"row {row} is none of the {self.n_rows} on offer")
        if self.decision == PLACE:
            return self._go(int(row))
        if self._take(*self._taking, int(row), self.evict_blocks):
            self.done_tct = []
            return True
        return self._go(0)

    def _go(self, chosen: int) -> bool:
        state = self._cluster.advance(chosen)
        while state == EVICT and not self._take(*self._taking, -1, self.evict_blocks):
            state = self._cluster.advance(0)
        self.decision = state
        self._look_around(state == CHOOSE)
        return state != ENDED

    @property
    def n_rows(self) -> int:
        """Workers, requests or candidates on offer; 0 = the run is over."""
        if self.decision == PLACE:
            return self.config.workers
        return int(self._taking[1].at[VICTIMS] if self.decision == EVICT else self.shown.n[OFFERED])

    @property
    def places(self) -> NDArray[np.float64]:
        """(workers, len(PLACEMENT)) at a placement."""
        return self._cluster.world.work.place

    @property
    def victims(self) -> NDArray[np.float64]:
        """(n_rows, len(EVICTION)) at an eviction, in the order in which LRU would take them."""
        offer = self._taking[1].offer[:self.n_rows]
        return self._taking[1].rows[offer]

    @property
    def unasked_evictions(self) -> int:
        """Blocks that went so far by the eviction policy, not by a decision."""
        return int(unasked(self._cluster.ref))
