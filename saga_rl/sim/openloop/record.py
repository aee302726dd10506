"""Record a reference string: what one worker serves under vLLM's own rules (LRU, FCFS)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import Cluster
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.reference import Reference


def record_reference(trace: Trace, config: SimConfig, policies: PolicySet | None = None) -> Reference:
    """Run `trace` in closed loop on ONE worker of `config` and keep the order of events.

    policies: who serves while it is recorded; stock vLLM unless given. Raises `UserError` for a session that cannot
    fit.
    """
    one = replace(config, workers=1)
    room = 4 * trace.n_steps + 1024
    while True:
        cluster = Cluster(trace, one, policies or preset("lru"), log=room)
        cluster.advance()
        run = cluster.world.run
        if not run.count[st.OVERFLOW]:
            break
        room *= 4  # preemptions made more events than expected
    n = int(run.count[st.LOGGED])
    log = run.log_i[:n]
    return Reference(trace, build_forest(trace, config.block_tokens), one.pool_blocks * one.block_tokens,
                     log[:, 0].astype(np.int8), log[:, 1].astype(np.int32), run.log_t[:n].copy(),
                     log[:, 2].copy(), log[:, 3].astype(np.int8))
