"""`saga_rl/PlacementVec-v0`, `OrderingVec-v0`, `AdmissionVec-v0`, `JointVec-v0` and `SchedulerVec-v0`: many of the
closed-loop environments at once, stepped in one compiled call (`saga_rl.sim.stepping.closed_vector`).

Spaces, rewards, masks, infos and what an observation may know are those of the single environments, decision for
decision. What differs is where episodes come from: a pool of them is arranged at construction, and played as
`saga_rl.env.pooled` says. Infos have "pool_episode" besides: the number in `episodes`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import resample
from saga_rl.env.eviction import ATTEMPTS
from saga_rl.env.placement import PlacementEnv
from saga_rl.env.pooled import MODES, PooledVectorEnv, need
from saga_rl.env.queue import AdmissionEnv, JointEnv, OrderingEnv, QueueEnv
from saga_rl.env.rewards import Rewards
from saga_rl.env.scheduler import DECISIONS, SchedulerEnv
from saga_rl.errors import UserError
from saga_rl.sim.cluster import check_runs, make_fresh
from saga_rl.sim.stepping import closed_slots as cs
from saga_rl.sim.stepping import replay_vector as vc
from saga_rl.sim.stepping.closed_vector import ClosedFleet
from saga_rl.sim.stepping.world_memory import Template


class ClosedVectorEnv(PooledVectorEnv):
    """num_envs environments; the parameters of the single environment, by name or in its order, and:

    episodes: size of the pool (1 if shuffle is False); pool_seed: the pool follows from it, so that environments with
    different seeds play the same episodes in other orders; autoreset_mode; copy: False hands out the buffer that the
    next step writes to. Raises `UserError`.
    """

    single: ClassVar[type[QueueEnv | PlacementEnv]]
    kind: ClassVar[int]

    def __init__(self, num_envs: int = 1, *args: Any, episodes: int = 16, pool_seed: int = 0,
                 autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, copy: bool = True,
                 **options: Any) -> None:
        need(num_envs=(num_envs, 1), episodes=(episodes, 1))
        mode = AutoresetMode(autoreset_mode)
        one: Any = self.single(*args, **options)  # checks what it is given, and knows what follows from it
        self._shape(num_envs, one.observation_space, one.action_space, mode, copy)
        self.rewards: Rewards = getattr(one, "rewards", Rewards())
        """`p95_weight` and `fairness_weight` of it count from the next step on; its accounts are not used."""
        policies = one.policies
        if self.kind != cs.PLACEMENT:
            policies = replace(policies, admission=replace(policies.admission, informed=True))
        rng, box = np.random.default_rng(pool_seed), one.observation_space
        if self.kind == cs.SCHEDULER:
            policies = replace(policies, eviction=replace(policies.eviction, informed=True))
        rules = (self.kind, MODES[mode], one.max_decisions, self.rewards.kind == "recomputed",
                 getattr(one, "evict_blocks", 0))
        real = (self.rewards.p95_weight, self.rewards.fairness_weight, float(box.low.min()), float(box.high.max()))
        self.episodes: list[Trace] = []
        """The pool."""
        pool: list[Template] = []
        segments = 0
        for _ in range(ATTEMPTS * episodes if one.shuffle else 1):
            arranged = resample(one.trace, rng, one.sessions) if one.shuffle else one.trace
            check_runs(arranged, one.config, policies)
            world = make_fresh(arranged, one.config, policies, 0, 0, 0)
            template, mine = Template(world), len(world.tree.parent)
            probe = cs.make_slots(1, box.shape, 1, arranged.n_sessions, mine, rules, real)
            ClosedFleet(probe, [template], policies).reset(np.ones(1, bool))
            if not probe.book[0, vc.OVER]:
                self.episodes.append(arranged)
                pool.append(template)
                segments = max(segments, mine)
            if len(pool) == episodes:
                break
        if not pool:
            raise UserError("population", f"of {one.config.population} leaves nothing to choose in a queue",
                            "raise it, or the load, or lower kv_tokens")
        slots = cs.make_slots(num_envs, box.shape, len(pool), max(t.n_sessions for t in self.episodes), segments, rules,
                              real)
        self._open(slots, ClosedFleet(slots, pool, policies))

    def reset(self, *, seed: int | list[int | None] | None = None,
              options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._weigh()
        return super().reset(seed=seed, options=options)

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_],
                                                        NDArray[np.bool_], dict[str, Any]]:
        self._weigh()
        return super().step(actions)

    def _weigh(self) -> None:
        self._slots.real[cs.P95_WEIGHT] = self.rewards.p95_weight
        self._slots.real[cs.FAIRNESS_WEIGHT] = self.rewards.fairness_weight


class PlacementVectorEnv(ClosedVectorEnv):
    """`saga_rl/PlacementVec-v0`. As in the single environment, a worker that is not there is an error."""

    single, kind = PlacementEnv, cs.PLACEMENT
    columns = {"decisions": vc.DECISIONS, "sessions_done": cs.DONE, "pool_episode": vc.EPISODE}  # noqa: RUF012

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_],
                                                        NDArray[np.bool_], dict[str, Any]]:
        given = np.asarray(actions)
        wrong = (given < 0) | (given >= self._slots.mask.shape[1])
        if wrong.any() and (given.shape != (self.num_envs,) or wrong[self._slots.book[:, vc.OVER] == 0].any()):
            raise ValueError(f"worker {given[wrong][0]} is not in 0..{self._slots.mask.shape[1] - 1}")
        return super().step(actions)


class QueueVectorEnv(ClosedVectorEnv):
    """What ordering, admission and joint have in common: infos with the costs that a reward is made of."""

    columns = {"decisions": vc.DECISIONS, "invalid_actions": vc.INVALID, "sessions_done": cs.DONE,  # noqa: RUF012
               "recomputed_tokens": vc.TOKENS, "pool_episode": vc.EPISODE}
    costs: ClassVar[dict[str, int]] = {"log_tct": cs.LOG_TCT, "recomputed_tokens": cs.RECOMPUTED_TOKENS,
                                       "fairness_gap_tokens": cs.GAP_TOKENS}

    def _infos(self, which: NDArray[np.bool_]) -> dict[str, Any]:
        return super()._infos(which) | self._components(self._slots.costs.copy(), which)

    def _last(self, over: NDArray[np.bool_]) -> dict[str, Any]:
        return super()._last(over) | self._components(np.where(over[:, None], self._slots.final_costs, 0.0), over)

    def _components(self, costs: NDArray[np.float64], which: NDArray[np.bool_]) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for key, column in self.costs.items():
            parts[key], parts[f"_{key}"] = costs[:, column], which
        return {"components": parts, "_components": which}


class OrderingVectorEnv(QueueVectorEnv):
    """`saga_rl/OrderingVec-v0`"""

    single, kind = OrderingEnv, cs.ORDER


class AdmissionVectorEnv(QueueVectorEnv):
    """`saga_rl/AdmissionVec-v0`"""

    single, kind = AdmissionEnv, cs.ADMIT


class JointVectorEnv(QueueVectorEnv):
    """`saga_rl/JointVec-v0`"""

    single, kind = JointEnv, cs.JOINT


class SchedulerVectorEnv(QueueVectorEnv):
    """`saga_rl/SchedulerVec-v0`"""

    single, kind = SchedulerEnv, cs.SCHEDULER
    columns = QueueVectorEnv.columns | {"unasked_evictions": cs.UNASKED}
    words = np.array(["", *DECISIONS.values()], object)

    def _infos(self, which: NDArray[np.bool_]) -> dict[str, Any]:
        return super()._infos(which) | self._named(self._slots.book, which)

    def _last(self, over: NDArray[np.bool_]) -> dict[str, Any]:
        return super()._last(over) | self._named(self._slots.final_book, over)

    def _named(self, book: NDArray[np.int64], which: NDArray[np.bool_]) -> dict[str, Any]:
        named = self.words[book[:, cs.DECISION]]
        named[~which] = None
        return {"decision": named, "_decision": which}
