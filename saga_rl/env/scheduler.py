"""`saga_rl/Scheduler-v0`: all decisions of a scheduler in one closed-loop run
(`saga_rl.sim.stepping.scheduler_stepper`).

R = max_rows. Whatever comes next is decided: where a request goes, who enters from a worker's queue, or whose blocks
go for the iteration that a worker is about to compose.

| decision | rows | action |
|---|---|---|
| `"placement"` | (W, LEARNED_PLACEMENT): workers | a worker |
| `"queue"` | (R - 1, LEARNED_ORDERING + LEARNED_ADMISSION): waiting requests | who enters, R - 1 nobody |
| `"eviction"` | (R, LEARNED_EVICTION): candidates, released earliest first | who loses tail blocks |

Observation: Box (R, 3 + the widest of these): three columns that say which decision it is, one of them 1 in each row
that is not masked, then the row's columns from the left; zero where there are none. `info["decision"]` says it in
words, "" once the episode is over. An action on a masked row becomes row 0 and is counted in `info["invalid_actions"]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env.eviction import BOUND
from saga_rl.env.placement import BOUND as PLACEMENT_BOUND
from saga_rl.env.queue import ADMIT, ORDER, QueueEnv
from saga_rl.errors import UserError
from saga_rl.policies.features import LEARNED_EVICTION, LEARNED_PLACEMENT
from saga_rl.sim.cluster import CHOOSE, EVICT, PLACE
from saga_rl.sim.stepping.queue_stepper import HOLD
from saga_rl.sim.stepping.scheduler_stepper import SchedulerStepper, check_eviction

DECISIONS = {PLACE: "placement", CHOOSE: "queue", EVICT: "eviction"}
KINDS, PLACEMENT, EVICTION = len(DECISIONS), len(LEARNED_PLACEMENT), len(LEARNED_EVICTION)


class SchedulerEnv(QueueEnv):
    """Parameters: as for `saga_rl.env.queue.QueueEnv`, and evict_blocks: blocks that an eviction takes at least, if the
    candidate has them; 1 = as many as are wanted. The eviction policy of `policies` decides where the agent is not
    asked: within floors, and after a preemption (`info["unasked_evictions"]`, blocks).

    Raises `UserError` as there, for fewer rows than workers, and for an eviction policy with memory or literal TTL.
    """

    columns, holds = KINDS + max(PLACEMENT, ORDER + ADMIT, EVICTION), True

    def __init__(self, trace: Trace | str | Path | None = None, kv_tokens: int = 240_000, max_rows: int = 32, *,
                 workers: int = 2, evict_blocks: int = 64, **options: Any) -> None:
        if evict_blocks < 1:
            raise UserError("evict_blocks", f"is {evict_blocks}", "give at least 1")
        if max_rows < max(3, workers):
            raise UserError("max_rows", f"is {max_rows}", f"give {max(3, workers)} or more: 3, and one for each worker")
        super().__init__(trace, kv_tokens, max_rows, workers=workers, **options)
        check_eviction(self.policies.eviction)
        self.evict_blocks = evict_blocks
        self.observation_space = spaces.Box(-BOUND, PLACEMENT_BOUND, (max_rows, self.columns), np.float32)

    def _new_stepper(self, trace: Trace) -> SchedulerStepper:
        return SchedulerStepper(trace, self.config, self.policies, self.max_rows, self.evict_blocks)

    def action_masks(self) -> NDArray[np.bool_]:
        """(max_rows,) workers, candidates, or requests and, if open, holding; all False once the episode is over."""
        mask = np.arange(self.max_rows) < self._rows()
        if self.stepper.decision == CHOOSE:
            mask[-1] = not self._over and not self.stepper.idle
        return mask

    def _entering(self, row: int) -> int:
        return HOLD if self.stepper.decision == CHOOSE and row == self.max_rows - 1 else row

    def _forced(self) -> int | None:
        return super()._forced() if self.stepper.decision == CHOOSE else None

    def _observation(self) -> NDArray[np.float32]:
        obs = np.zeros((self.max_rows, self.columns), np.float32)
        n, stepper = self._rows(), self.stepper
        if n == 0:
            return obs
        obs[self.action_masks(), stepper.decision - PLACE] = 1.0
        if stepper.decision == PLACE:
            obs[:n, KINDS:KINDS + PLACEMENT] = np.clip(stepper.places[:, :PLACEMENT], 0.0, PLACEMENT_BOUND)
        elif stepper.decision == EVICT:
            obs[:n, KINDS:KINDS + EVICTION] = np.clip(stepper.victims[:, :EVICTION], -BOUND, BOUND)
        else:
            obs[:n, KINDS:KINDS + ORDER] = np.clip(stepper.shown.order[:n, :ORDER], -BOUND, BOUND)
            obs[:n, KINDS + ORDER:KINDS + ORDER + ADMIT] = np.clip(stepper.shown.admit[:n, :ADMIT], -BOUND, BOUND)
        return obs

    def _info(self) -> dict[str, Any]:
        decision = "" if self._over else DECISIONS[self.stepper.decision]
        return super()._info() | {"decision": decision, "unasked_evictions": self.stepper.unasked_evictions}
