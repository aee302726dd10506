"""`saga-rl replay TRACE --url URL`: drive an OpenAI-compatible server with a trace and report what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from saga_rl.aeg.quality import quality
from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check_fits
from saga_rl.replay.client import OpenAIClient
from saga_rl.replay.drive import DriveOptions, Measured, Watcher, drive
from saga_rl.report.progress import LoggedProgress

BLOCK_TOKENS = 16
"""Of a server that does not say: what vLLM takes on GPUs."""
COUNTERS = {"vllm:num_preemptions_total": "preemptions"}


def metrics(trace: Trace, m: Measured) -> dict[str, Any]:
    """Keys as `saga-rl simulate` names them where they mean the same, plus `measured`. Unknown figures are null."""
    done = ~np.isnan(m.done_s)
    tct = (m.end_s - m.start_s)[~np.isnan(m.end_s)]
    ttft = (m.first_token_s - m.ready_s)[done]
    prompt, known = int(m.prompt_tokens[done].sum()), bool(done.any() and (m.cached_tokens[done] >= 0).all())
    cached = int(m.cached_tokens[done].sum()) if known else None
    first_time = int(m.first_time_tokens[done].sum())

    def quantile(values: np.ndarray, q: float) -> float | None:
        return float(np.quantile(values, q)) if len(values) else None

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    return {
        "measured": True,
        "tct_mean_s": mean(tct), "tct_p50_s": quantile(tct, .5), "tct_p95_s": quantile(tct, .95),
        "sessions_done": len(tct), "sessions_failed": trace.n_sessions - len(tct),
        "recomputed_tokens": None if cached is None else max(0, prompt - cached - first_time),
        "prefilled_tokens": None if cached is None else prompt - cached,
        "first_time_tokens": first_time, "prompt_tokens": prompt, "cached_tokens": cached,
        "output_tokens": int(m.output_tokens[done].sum()),
        "hit_share": None if cached is None or not prompt else cached / prompt,
        "throughput_sessions_per_min": 60 * len(tct) / m.wall_s if m.wall_s else None,
        "slo_attainment": _slo(trace, m),
        "ttft_mean_s": mean(ttft), "ttft_p50_s": quantile(ttft, .5), "ttft_p95_s": quantile(ttft, .95),
        "llm_steps": int(done.sum()), "requests_failed": len(m.errors), "filled_outputs": m.filled_outputs,
        "send_delay_p95_s": quantile((m.sent_s - m.ready_s)[done], .95),
        "wall_s": m.wall_s,
        "tct_s": {trace.sessions.session_id[i]: float(m.end_s[i] - m.start_s[i])
                  for i in range(trace.n_sessions) if not np.isnan(m.end_s[i])},
        "errors": m.errors[:20],
    }


def _slo(trace: Trace, m: Measured) -> float | None:
    """Share of the sessions with a deadline that met it; None where the trace sets none."""
    allowed = trace.sessions.deadline_s - trace.sessions.arrival_s
    has = ~np.isnan(allowed)
    return float(np.mean((m.end_s - m.start_s)[has] <= allowed[has])) if has.any() else None


def recorded_trace(trace: Trace, m: Measured, url: str, speed: float = 1.0) -> Trace:
    """`trace` with the times and cached tokens that were measured; sessions that failed are left out and counted."""
    st, ses = trace.steps, trace.sessions
    st = replace(st, start_s=m.sent_s, first_token_s=m.first_token_s, end_s=m.done_s, cached_tokens=m.cached_tokens,
                 tool_s=st.tool_s / speed, think_s=st.think_s / speed)
    start = np.where(np.isnan(m.start_s), ses.arrival_s, m.start_s)
    sessions = replace(ses, arrival_s=start, deadline_s=start + (ses.deadline_s - ses.arrival_s) / speed)
    whole = np.flatnonzero(~np.isnan(m.end_s))
    meta = replace(trace.meta, source=f"recorded:replay of {trace.meta.name}",
                   dropped={"failed session": trace.n_sessions - len(whole)} if len(whole) < trace.n_sessions else {},
                   notes=trace.meta.notes | {"replay_url": url})
    return replace(trace, meta=meta, steps=st, sessions=sessions).select(whole)


async def run_replay(trace: Trace, url: str, *, model: str | None = None, speed: float = 1.0,
                     concurrency: int | None = None, api_key: str | None = None, hints: bool = True,
                     ends: bool = True, next_tool: bool = True, priority: bool = False, salt: str = "",
                     block_tokens: int | None = None, agent_headers: bool = False, agentic_context: bool = False,
                     progress: Progress | None = None, watch: Watcher | None = None) -> tuple[dict[str, Any], Measured]:
    """Play `trace` against the server at `url`; returns (`metrics`, per-step arrays). watch: told what happens, in the
    place of a `progress` bar. block_tokens: of the server's KV blocks; None: what it says on /metrics, else 16. Raises
    `UserError`."""
    async with OpenAIClient(url, api_key) as client:
        name, model_len = await client.model(model)
        check_fits(trace, model_len=model_len)
        block = block_tokens or await client.block_tokens() or BLOCK_TOKENS
        options = DriveOptions(name, speed, concurrency, hints, ends, next_tool, priority, salt, block, agent_headers,
                               agentic_context)
        before = await client.counters(COUNTERS)
        told = watch if watch is not None else _bar(trace, progress) if progress is not None else lambda event: None
        measured = await drive(trace, client, options, told)
        after = await client.counters(COUNTERS)
    counted = {k: int(after[k] - before.get(k, 0.0)) for k in after}
    asked = {"model": name, "block_tokens": block, "trace_quality": quality(trace)}
    return metrics(trace, measured) | counted | asked, measured


def _bar(trace: Trace, progress: Progress) -> Watcher:
    steps = progress.add_task("steps", total=trace.n_steps, failed="")
    sessions = progress.add_task("sessions", total=trace.n_sessions, failed="")
    failed = 0

    def watch(event: str) -> None:
        nonlocal failed
        if event == "failed":
            failed += 1
            progress.update(sessions, failed=f"[red]{failed} failed")
        else:
            progress.advance(steps if event == "step" else sessions)

    return watch


def progress_bar(console: Console) -> Progress:
    """The bars of a replay; lines where there is no terminal."""
    return LoggedProgress(console, "failed")


NOT_SAID = "not said; vLLM says it with --enable-prompt-tokens-details"


def summary(result: dict[str, Any]) -> Table:
    """The measured figures for a person."""
    table = Table(title="measured", show_header=False)

    def show(label: str, key: str, form: str = "{:.2f} s", absent: str = "-") -> None:
        value = result[key]
        table.add_row(label, absent if value is None else form.format(value))

    show("sessions done", "sessions_done", "{}")
    show("sessions failed", "sessions_failed", "{}")
    show("task completion, mean", "tct_mean_s")
    show("task completion, median", "tct_p50_s")
    show("task completion, P95", "tct_p95_s")
    show("first token, mean", "ttft_mean_s")
    show("first token, P95", "ttft_p95_s")
    show("prompt tokens", "prompt_tokens", "{:,}")
    show("  found in cache", "cached_tokens", "{:,}", NOT_SAID)
    show("  seen for the first time", "first_time_tokens", "{:,}")
    show("  computed again", "recomputed_tokens", "{:,}", NOT_SAID)
    show("sessions a minute", "throughput_sessions_per_min", "{:.1f}")
    return table
