"""The closed loop: sessions arrive, requests are placed, workers iterate, tools run, sessions end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check_fits
from saga_rl.errors import UserError
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import preset
from saga_rl.policies.state import chains as ch
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.compiled.refs import refs_of, world_ref
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.loop import (
    ALL,
    CHOOSE,
    ENDED,
    EVICT,
    HOLD,
    NO_PAUSE,
    PLACE,
    PLACEMENTS,
    QUEUE,
    run_on,
)
from saga_rl.sim.results.fairness import fairness
from saga_rl.sim.results.metrics import metrics

__all__ = ["ALL", "CHOOSE", "ENDED", "EVICT", "HOLD", "HORIZONS", "NO_PAUSE", "PLACE", "PLACEMENTS", "QUEUE", "Cluster",
           "SimResult", "alone_tct", "check_runs", "simulate", "stated_horizon"]

HORIZONS = 4
"""A cluster that is still busy after so many times (last arrival + longest session alone) is overloaded."""


def check_runs(trace: Trace, config: SimConfig, policies: PolicySet) -> None:
    """`UserError` for a session that cannot fit, or an eviction policy that must know the future."""
    check_fits(trace, kv_tokens=config.pool_blocks * config.block_tokens)
    if policies.eviction.oracle and policies.eviction.name != "clairvoyant":
        raise UserError(f"eviction policy {policies.eviction.name!r}", "must know the future, which in closed loop "
                        "depends on the policy", "compare it on a fixed reference string (`saga-rl bound`), or name "
                        "clairvoyant, which knows when each session comes back")
    if policies.admission.oracle and not policies.eviction.oracle:
        raise UserError(f"admission policy {policies.admission.name!r}", "must know when each chain is next used",
                        "name it together with eviction policy clairvoyant")
    if policies.placement.steals and config.workers < 2:
        raise UserError(f"placement policy {policies.placement.name!r}", "steals sessions from other workers, but "
                        "there is one worker", "give 2 workers or more, or leave steal out")
    if config.constraints.kv_floors:
        config.constraints.floors(trace.tenants, config.pool_blocks)


class Cluster:
    """One closed-loop run that can be paused at placements, at choices from a queue, or at these and evictions.
    `advance(-1)` starts it."""

    def __init__(self, trace: Trace, config: SimConfig, policies: PolicySet, *, log: int = 0, samples: int = 0,
                 iterations: int = 0, pause: int = NO_PAUSE) -> None:
        check_runs(trace, config, policies)
        self.trace, self.config, self.policies = trace, config, policies
        self.world = make_fresh(trace, config, policies, log, samples, iterations)
        if config.async_scheduling and pause not in (NO_PAUSE, PLACEMENTS):
            raise UserError("async_scheduling", "is on, but this environment decides between iterations",
                            "leave it off where queues and evictions are decided")
        self.policy_refs = refs_of(policies)
        self.ref = world_ref(self.world, self.policy_refs)
        """The world as compiled code takes it; it does not own the arrays, `world` and `policy_refs` do."""
        self._pause = int(pause)
        self._run: Callable[..., int] = compiled(run_on.py_func, (self.ref, self._pause, 0))

    def advance(self, chosen: int = -1) -> int:
        """`ENDED`, `PLACE`, `CHOOSE` or `EVICT`, see `loop.run_on`. `RuntimeError` if nothing more can happen
        although steps are left."""
        state = self._run(self.ref, self._pause, chosen)
        left = int(self.world.run.left.sum())
        if state == ENDED and left and self.world.heap.n[0] == 0:
            raise RuntimeError(f"the simulation stopped with {left} steps undone: a request that fits was never served")
        return state


def make_fresh(trace: Trace, config: SimConfig, policies: PolicySet, log: int, samples: int,
               iterations: int) -> st.World:
    """A world whose chains are marked as not seen yet."""
    world = st.make_world(trace, config, policies, log=log, samples=samples, iterations=iterations)
    world.chains[:, ch.QUEUED] = np.nan
    return world


@dataclass(frozen=True)
class SimResult:
    """What a run gave. Times are seconds on the simulation's clock; NaN where a step or session was not finished."""

    metrics: dict[str, Any]
    tct_s: NDArray[np.float64]
    """(n_sessions,) from the session's first request to the end of its last."""
    steps: dict[str, NDArray]
    """(n_steps,) worker, ready_s, scheduled_s, first_token_s, done_s, cached_tokens, preemptions."""
    occupancy: dict[str, NDArray] | None
    """time_s (samples,), blocks (samples, n_sessions)."""


def simulate(trace: Trace, config: SimConfig, policies: PolicySet, seed: int = 0, occupancy: int = 0,
             slo: bool = True) -> SimResult:
    """Run `trace` to its end (or `config.horizon_s`).

    seed: recorded only; nothing here is random. occupancy: samples of KV by session to keep. slo: also run every
    session alone to know what 1.5 x its expected time is (SAGA section 7). Raises `UserError` for a session that
    cannot fit.
    """
    started = time.perf_counter()
    cluster = Cluster(trace, config, policies, samples=occupancy)
    cluster.advance()
    wall = time.perf_counter() - started
    world = cluster.world
    alone = alone_tct(trace, config) if slo else None
    run = world.run
    result = metrics(world, alone, wall) | fairness(world, trace, config, alone) | {
        "horizon_s": _finite(config.horizon_s), "extrapolated": config.profile.outside(_most(world))}
    steps = {
        "worker": run.i[:, st.WORKER].copy(),
        "ready_s": run.f[:, st.SENT if config.async_scheduling else st.READY].copy(),
        "scheduled_s": run.f[:, st.START_S].copy(), "first_token_s": run.f[:, st.FIRST_S].copy(),
        "done_s": run.f[:, st.DONE_S].copy(), "cached_tokens": run.i[:, st.CACHED].copy(),
        "preemptions": run.i[:, st.PREEMPTIONS].copy(),
    }
    n = int(run.count[st.SAMPLES])
    kept: dict[str, NDArray] | None = None
    if occupancy:
        kept = {"time_s": run.occupancy_t[:n].copy(), "blocks": run.occupancy[:n].copy()}
    return SimResult(result, run.done_s - run.begin_s, steps, kept)


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _most(world: st.World) -> dict[str, float]:
    """The run's largest iterations, as `CostProfile.outside` wants them."""
    total = world.run.total
    return {"prefill_tokens": total[st.MOST_PREFILL], "context_tokens": total[st.MOST_CONTEXT],
            "decode_seqs": total[st.MOST_SEQS], "decode_kv_tokens": total[st.MOST_KV]}


def stated_horizon(trace: Trace, config: SimConfig) -> float:
    """Seconds after which a run of `trace` counts as overloaded; infinity for a closed population, which cannot be."""
    if config.population or not trace.n_sessions:
        return np.inf
    return HORIZONS * float(trace.sessions.arrival_s.max() + alone_tct(trace, config).max())


def alone_tct(trace: Trace, config: SimConfig) -> NDArray[np.float64]:
    """(n_sessions,) seconds that each session takes alone on one such worker with memory for everything, cached."""
    gap = 1e6 + float(np.max(trace.steps.tool_s + trace.steps.think_s, initial=0.0)) * float(
        np.max(np.diff(trace.session_offsets), initial=1))
    arrivals = np.arange(trace.n_sessions, dtype=np.float64) * np.float64(gap)
    apart = replace(trace, sessions=replace(trace.sessions, arrival_s=arrivals,
                                            deadline_s=np.full(trace.n_sessions, np.nan)))
    total = int(np.sum(trace.steps.prompt_tokens + trace.steps.output_tokens)) + config.block_tokens * trace.n_steps
    idle = replace(config, workers=1, kv_tokens=total + config.block_tokens, population=0, horizon_s=np.inf,
                   prefix_caching=True)
    cluster = Cluster(apart, idle, preset("lru"))
    cluster.advance()
    return cluster.world.run.done_s - cluster.world.run.begin_s
