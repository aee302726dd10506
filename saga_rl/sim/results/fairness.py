"""Fairness between tenants in a closed-loop run: what each had, and how far apart they were. Keys:
docs/reference/results.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.policies.state import service as sv
from saga_rl.sim.config import SimConfig
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.state import World
from saga_rl.sim.results.metrics import SLO_FACTOR


def jain(x: NDArray[np.float64]) -> float:
    """Jain's index of the shares `x` (n,) >= 0: 1 = all equal, 1 / n = one has all (Jain, Chiu, Hawe 1984)."""
    return float(x.sum() ** 2 / (len(x) * (x ** 2).sum()))


def fairness(world: World, trace: Trace, config: SimConfig, alone_s: NDArray[np.float64] | None) -> dict[str, Any]:
    """Service in tokens of `policies.state.service`; slowdowns are TCT over the session's time alone on an idle
    cluster.

    service_gap_tokens: largest difference of counters between tenants that waited at one worker at the same time, seen
    whenever a request came or was scheduled. service_gap_bound_tokens: what the constraint guarantees, None without.
    jain_index: of the tenants' mean speed (time alone / TCT). Undefined figures are None.
    """
    run, gap = world.run, config.constraints.service_gap_tokens
    several = len(trace.tenants) > 1
    steps = trace.steps
    bound = None
    if math.isfinite(gap) and several:
        bound = sv.bound(gap, float(steps.prompt_tokens.max(initial=0)), config.max_num_seqs,
                         float(steps.output_tokens.max(initial=0)))
    rows, speeds = [], []
    tct = run.done_s - run.begin_s
    for t, name in enumerate(trace.tenants):
        mine = np.flatnonzero(trace.sessions.tenant == t)
        done = mine[np.isfinite(tct[mine])]
        row: dict[str, Any] = {"tenant": name, "sessions": len(mine), "sessions_done": len(done),
                               "tct_mean_s": float(tct[done].mean()) if len(done) else None,
                               "service_tokens": float(run.service[:, t, sv.COUNTER].sum()) if several else None,
                               "slowdown_p95": None, "slo_attainment": None}
        if alone_s is not None and len(mine):
            row["slo_attainment"] = float((tct[done] <= SLO_FACTOR * alone_s[done]).sum() / len(mine))
            if len(done):
                row["slowdown_p95"] = float(np.percentile(tct[done] / alone_s[done], 95))
                speeds.append(float((alone_s[done] / tct[done]).mean()))
        rows.append(row)
    return {
        "service_gap_tokens": float(run.total[st.SPREAD]) if several else None,
        "service_gap_bound_tokens": bound,
        "jain_index": jain(np.array(speeds)) if len(speeds) > 1 else None,
        "floor_breaks": int(run.count[st.FLOOR_BREAKS]),
        "afs_preemptions": int(run.count[st.AFS_PREEMPTED]),
        "steals": int(run.count[st.STEALS]),
        "tenants": rows,
    }
