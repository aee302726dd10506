"""One run: the sessions of a repeat against one server, and its line in the journal."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
from rich.progress import Progress

from gain_kit.demand import live_tokens
from gain_kit.engines import KEY
from gain_kit.settings import ARMS, Setup
from saga_rl.aeg.trace import Trace
from saga_rl.runtime.replay import metrics, run_replay
from saga_rl.runtime.replay_drive import Measured

TOP = ("recomputed_tokens", "prefilled_tokens", "prompt_tokens", "first_time_tokens", "output_tokens", "hit_share",
       "throughput_sessions_per_min", "ttft_mean_s", "ttft_p95_s", "tct_mean_s", "tct_p95_s", "sessions_failed",
       "requests_failed", "preemptions", "send_delay_p95_s", "wall_s", "llm_steps")


def play(setup: Setup, arm: str, trace: Trace, url: str, salt: str, progress: Progress | None = None
         ) -> tuple[dict[str, Any], Measured]:
    """Replay `trace` as a client that knows its session and the tools that it ran. salt: no other run's, or sessions
    would be taken for ones that come back."""
    return asyncio.run(run_replay(
        trace, url, concurrency=setup.alive, ends=setup.ends, next_tool=False, priority=ARMS[arm].priority, salt=salt,
        block_tokens=setup.block_tokens, api_key=KEY, progress=progress))


def line(setup: Setup, arm: str, pressure: float, repeat: int, order: int, pool_tokens: int, trace: Trace,
         m: Measured, shown: dict[str, Any]) -> dict[str, Any]:
    """The journal's line of a run: its figures, by tenant too, and every session's completion time."""
    whole = metrics(trace, m) | {k: v for k, v in shown.items() if k == "preemptions"}
    figures = {k: whole[k] for k in TOP if k in whole}
    figures["oversubscription"] = None
    if not m.errors:
        live = live_tokens(trace, m.sent_s, m.done_s, setup.engines, setup.block_tokens)
        figures["oversubscription"] = live / (setup.engines * pool_tokens)
    tct = {sid: round(float(m.end_s[i] - m.start_s[i]), 4) for i, sid in enumerate(trace.sessions.session_id)
           if not np.isnan(m.end_s[i])}
    return {"kind": "run", "arm": arm, "pressure": pressure, "repeat": repeat, "order": order,
            "pool_tokens": pool_tokens, "failed": len(m.errors), "errors": m.errors[:5], "figures": figures,
            "tenants": by_tenant(trace, m), "tct_s": tct, "load": os.getloadavg()[0]}


def by_tenant(trace: Trace, m: Measured) -> dict[str, dict[str, float]]:
    """Completion, first token, tokens computed again and service (prompt computed + answer) of every tenant."""
    out = {}
    of_step = trace.sessions.tenant[trace.steps.session]
    for code, name in enumerate(trace.tenants):
        rows, ses = np.flatnonzero(of_step == code), np.flatnonzero(trace.sessions.tenant == code)
        rows = rows[~np.isnan(m.done_s[rows]) & (m.cached_tokens[rows] >= 0)]
        tct = (m.end_s - m.start_s)[ses]
        tct = tct[~np.isnan(tct)]
        if not len(rows) or not len(tct):
            continue
        ttft = (m.first_token_s - m.ready_s)[rows]
        computed = m.prompt_tokens[rows] - m.cached_tokens[rows]
        out[name] = {"sessions": len(tct), "tct_mean_s": float(tct.mean()), "tct_p95_s": float(np.quantile(tct, .95)),
                     "ttft_mean_s": float(ttft.mean()), "ttft_p95_s": float(np.quantile(ttft, .95)),
                     "recomputed_tokens": int((computed - m.first_time_tokens[rows]).sum()),
                     "service_tokens": int((computed + m.output_tokens[rows]).sum())}
    return out
