"""What a worker's iterations are made of, one by one: to compare the engine model with a real scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from saga_rl.aeg.trace import Trace
from saga_rl.policies.base import PolicySet
from saga_rl.sim.cluster import Cluster
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st


@dataclass(frozen=True)
class Iteration:
    """One iteration of one worker."""

    worker: int
    start_s: float
    seconds: float
    tokens: list[tuple[int, int]]
    """(step, tokens scheduled) in scheduling order."""
    preempted: list[int]
    """Steps, in the order in which they lost their blocks."""


def iteration_log(trace: Trace, config: SimConfig, policies: PolicySet) -> list[Iteration]:
    """Every iteration of a closed-loop run, in order of start. A request that is preempted in the iteration in which it
    was scheduled is in `preempted` only, as in vLLM. Raises `UserError` as `simulate` does."""
    room = 256 * trace.n_steps + 4096
    while True:
        cluster = Cluster(trace, config, policies, iterations=room)
        cluster.advance()
        run = cluster.world.run
        if not run.count[st.OVERFLOW]:
            break
        room *= 4
    n, parts = int(run.count[st.N_ITERATIONS]), int(run.count[st.N_PARTS])
    ends = [*run.it_i[1:n, 1].tolist(), parts]
    out = []
    for k in range(n):
        rows = [(int(step), int(tokens)) for step, tokens in run.it_part[run.it_i[k, 1]:ends[k]]]
        gone = [step for step, tokens in rows if tokens < 0]
        out.append(Iteration(int(run.it_i[k, 0]), float(run.it_f[k, 0]), float(run.it_f[k, 1]),
                             [(s, n) for at, (s, n) in enumerate(rows) if n > 0 and (s, -1) not in rows[at:]], gone))
    return out
