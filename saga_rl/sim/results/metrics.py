"""The figures of a closed-loop run. Keys are a contract: see `docs/reference/results.md`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.state import World

SLO_FACTOR = 1.5


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def metrics(world: World, alone_s: NDArray[np.float64] | None, wall_s: float) -> dict[str, Any]:
    """Every `simulate` key but `provenance`. Undefined figures (no session done) are None.

    hit_share: cached share of the prompt tokens, at first scheduling. recomputed_tokens: tokens computed although they
    had been computed before anywhere (what an infinite shared cache would have saved). useful_kv_share: of the
    block-seconds that held anything, those that ran or were found again later. slo_attainment: share of all sessions
    done within 1.5 x their time alone. stored, loaded, moved, prefetched tokens: KV copied to the CPU tier, from it for
    a request that waited, from another worker, and from it ahead of time.
    """
    run, count, total = world.run, world.run.count, world.run.total
    workers = world.limits[st.WORKERS]
    in_use, busy_blocks = run.wf[:, st.IN_USE].sum(), run.wf[:, st.BUSY_BLOCKS].sum()
    tct = run.done_s - run.begin_s
    done = tct[np.isfinite(tct)]
    span = np.nanmax(run.done_s) - np.nanmin(run.begin_s) if len(done) else math.nan
    slo = None
    if alone_s is not None and len(tct):
        slo = float(np.mean(np.where(np.isfinite(tct), tct <= SLO_FACTOR * alone_s, False)))
    return {
        "tct_mean_s": _number(np.mean(done)) if len(done) else None,
        "tct_p50_s": _number(np.percentile(done, 50)) if len(done) else None,
        "tct_p95_s": _number(np.percentile(done, 95)) if len(done) else None,
        "sessions_done": int(count[st.SESSIONS_DONE]),
        "recomputed_tokens": int(count[st.RECOMPUTED]),
        "prefilled_tokens": int(count[st.PREFILLED]),
        "hit_share": float(count[st.HIT] / count[st.PROMPT]) if count[st.PROMPT] else None,
        "useful_kv_share": float((busy_blocks + total[st.USEFUL_IDLE]) / in_use) if in_use > 0 else None,
        "throughput_sessions_per_min": _number(60.0 * len(done) / span) if len(done) and span > 0 else None,
        "slo_attainment": slo,
        "evictions": int(world.pool.n[:workers, kv.EVICTED].sum()),
        "preemptions": int(count[st.PREEMPTED]),
        "migrations": int(count[st.MIGRATIONS]),
        "stored_tokens": int(count[st.STORED]),
        "loaded_tokens": int(count[st.LOADED]),
        "moved_tokens": int(count[st.MOVED_TOKENS]),
        "prefetched_tokens": int(count[st.PREFETCHED]),
        "iterations": int(count[st.ITERATIONS]),
        "llm_steps": int(count[st.STEPS_DONE]),
        "events": int(count[st.EVENTS]),
        "wall_s": wall_s,
    }
