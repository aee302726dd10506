"""`saga_rl/EvictionVec-v0`: many `saga_rl/Eviction-v0` at once, stepped in one compiled call
(`saga_rl.sim.stepping.replay_vector`).

Spaces, rewards, masks and what an observation may know are those of `saga_rl.env.eviction`, decision for decision. What
differs is where episodes come from: recording a reference string takes a closed-loop run, so a pool of them is made at
construction, and played as `saga_rl.env.pooled` says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import load_source, resample, sim_config
from saga_rl.env.eviction import ATTEMPTS, BOUND
from saga_rl.env.pooled import MODES, PooledVectorEnv, need
from saga_rl.errors import UserError
from saga_rl.policies.features import LEARNED_EVICTION
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.reference import Reference
from saga_rl.sim.stepping import replay_vector as vc
from saga_rl.sim.stepping.replay_stepper import EvictionStepper


class EvictionVectorEnv(PooledVectorEnv):
    """num_envs environments; the parameters of `saga_rl.env.eviction.EvictionEnv`, and:

    episodes: size of the pool (1 if shuffle is False); pool_seed: the pool follows from it, so that environments with
    different seeds play the same episodes in other orders; autoreset_mode; copy: False hands out the buffer that the
    next step writes to. Raises `UserError`.
    """

    columns = {"decisions": vc.DECISIONS, "invalid_actions": vc.INVALID,  # noqa: RUF012
               "recomputed_tokens": vc.TOKENS, "pool_episode": vc.EPISODE}

    def __init__(self, num_envs: int = 1, trace: Trace | str | Path | None = None, kv_tokens: int = 240_000,
                 max_rows: int = 32, *, generator: str | None = None, params: dict[str, Any] | None = None,
                 sessions: int = 0, population: int = 0, max_decisions: int = 0, shuffle: bool = True,
                 profile: str | None = None, record: str = "lru", episodes: int = 16, pool_seed: int = 0,
                 autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, copy: bool = True) -> None:
        need(num_envs=(num_envs, 1), max_rows=(max_rows, 2), episodes=(episodes, 1))
        mode = AutoresetMode(autoreset_mode)
        self._shape(num_envs, spaces.Box(-BOUND, BOUND, (max_rows, len(LEARNED_EVICTION)), np.float32),
                    spaces.Discrete(max_rows), mode, copy)
        config = sim_config(kv_tokens, population=population, profile=profile)
        source, policies = load_source(trace, generator, params), preset(record)
        rng = np.random.default_rng(pool_seed)
        self.references: list[Reference] = []
        """The pool; `EvictionStepper` plays its entries singly."""
        for _ in range(ATTEMPTS * episodes if shuffle else 1):
            arranged = resample(source, rng, sessions) if shuffle else source
            reference = record_reference(arranged, config, policies)
            if EvictionStepper(reference, kv_tokens, max_rows, end_hint=config.end_hint,
                               expiry_s=config.expiry_s).n_rows:
                self.references.append(reference)
            if len(self.references) == episodes:
                break
        if not self.references:
            raise UserError("kv_tokens", f"of {kv_tokens} never runs out in the episodes tried",
                            "lower kv_tokens, or take more sessions or a larger population")
        slots = vc.make_slots(num_envs, max_rows, len(LEARNED_EVICTION), len(self.references), MODES[mode],
                              max_decisions, config.end_hint, config.expiry_s)
        self._open(slots, vc.Fleet(slots, [prepare(r, kv_tokens) for r in self.references],
                                   replace(make("eviction", "lru"), informed=True)))
