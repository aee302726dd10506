"""One run: the sessions of a repeat against one arm, and its line in the journal. Seconds are the device's."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from typing import Any

import numpy as np

from saga_rl.aeg.trace import Trace
from saga_rl.experiments.bench.arms import Arm
from saga_rl.experiments.bench.demand import chains, live_tokens
from saga_rl.experiments.bench.material import first_calls
from saga_rl.experiments.bench.servers import KEY
from saga_rl.experiments.bench.settings import Settings
from saga_rl.replay.drive import Measured, Watcher
from saga_rl.replay.run import metrics, run_replay

TOP = ("tct_mean_s", "tct_p50_s", "tct_p95_s", "ttft_mean_s", "ttft_p95_s", "recomputed_tokens", "hit_share",
       "throughput_sessions_per_min", "prefilled_tokens", "prompt_tokens", "first_time_tokens", "output_tokens",
       "sessions_done", "sessions_failed", "requests_failed", "send_delay_p95_s", "wall_s", "llm_steps")
SAMPLES = 160
"""Moments of a run at which the KV of every session is noted."""


def play(s: Settings, arm: Arm, trace: Trace, url: str, salt: str, alive: int | None, watch: Watcher | None = None
         ) -> tuple[dict[str, Any], Measured]:
    """Replay `trace` as a client that knows its session and the tools that it ran. salt: no other run's, or sessions
    would be taken for ones that come back. Times come back in seconds of the device."""
    shown, m = asyncio.run(run_replay(
        trace, url, speed=s.time_scale, concurrency=alive, ends=s.ends, next_tool=False, priority=arm.priority,
        salt=salt, block_tokens=s.block_tokens, api_key=KEY, agent_headers=arm.router == "program", watch=watch))
    return {k: v for k, v in shown.items() if k == "preemptions"}, on_device(m, s.time_scale)


def warm_up(s: Settings, arm: Arm, trace: Trace, url: str, salt: str, alive: int) -> None:
    """AgentX's way to begin: so many first calls as sessions are alive, then a quiet time."""
    play(s, arm, first_calls(trace, alive, "first"), url, salt, alive)
    time.sleep(s.quiet_s / s.time_scale)


def on_device(m: Measured, time_scale: float) -> Measured:
    """What was measured, in seconds of the device."""
    times = ("ready_s", "sent_s", "first_token_s", "done_s", "start_s", "end_s", "wall_s")
    return m if time_scale == 1 else replace(m, **{k: getattr(m, k) * time_scale for k in times})


def line(s: Settings, arm: Arm, repeat: int, order: int, pool: int | None, trace: Trace, m: Measured,
         shown: dict[str, Any], runs_before: int) -> dict[str, Any]:
    """The journal's line of a run: its figures, by tenant too, every session's completion time, and of the first
    repeat what each session held over time."""
    whole = metrics(trace, m) | shown
    figures = {k: whole[k] for k in (*TOP, "preemptions") if k in whole}
    figures["oversubscription"] = None
    if not m.errors and pool:
        figures["oversubscription"] = live_tokens(trace, m.sent_s, m.done_s, s.engines, s.block_tokens) / (
            s.engines * pool)
    tct = {sid: round(float(m.end_s[i] - m.start_s[i]), 4) for i, sid in enumerate(trace.sessions.session_id)
           if not np.isnan(m.end_s[i])}
    return {"kind": "run", "arm": arm.name, "repeat": repeat, "order": order, "pool_tokens": pool,
            "runs_before": runs_before, "failed": len(m.errors), "errors": m.errors[:5], "figures": figures,
            "tenants": by_tenant(trace, m), "tct_s": tct, "real_s": round(m.wall_s / s.time_scale, 2),
            "load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0)),
            "held": held(trace, m) if repeat == 0 else None}


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


def held(trace: Trace, m: Measured, samples: int = SAMPLES) -> dict[str, Any]:
    """KV tokens that each session held at least: `time_s` and `tokens` (samples, sessions).

    What any server tells alike: a step found `cached` tokens, so its chain held them from its last step on; with the
    first token it holds the prompt, at the end the whole context, and after its last step nothing is known to be held.
    """
    done = ~np.isnan(m.done_s)
    if not done.any():
        return {"time_s": [], "tokens": []}
    at = np.linspace(0.0, float(m.done_s[done].max()), samples)
    tokens = np.zeros((samples, trace.n_sessions))
    chain, cached = chains(trace), np.maximum(m.cached_tokens, 0)
    order = np.lexsort((m.sent_s, chain))
    order = order[done[order]]
    for rows in np.split(order, np.flatnonzero(np.diff(chain[order])) + 1):
        first = m.first_token_s[rows]
        begin = np.concatenate([[m.sent_s[rows[0]]], m.done_s[rows[:-1]] + 1e-9])
        x = np.stack([begin, np.maximum(first - 1e-9, begin), first, m.done_s[rows]], axis=1).reshape(-1)
        y = np.stack([cached[rows], cached[rows], m.prompt_tokens[rows],
                      m.prompt_tokens[rows] + m.output_tokens[rows]], axis=1).reshape(-1)
        tokens[:, trace.steps.session[rows[0]]] += np.interp(at, np.maximum.accumulate(x), y, left=0.0, right=0.0)
    return {"time_s": np.round(at, 2).tolist(), "tokens": tokens.astype(int).tolist()}
