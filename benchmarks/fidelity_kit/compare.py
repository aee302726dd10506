"""Figures of a run, simulated or measured, and the arithmetic of holding one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fidelity_kit.log import EngineLog
from fidelity_kit.order import Replayed, replay
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile

Figures = dict[str, float]
SAME_S = 1e-9
"""Times that differ by less are equal: sums of equal terms in another order."""


@dataclass(frozen=True)
class Metric:
    key: str
    title: str
    form: str
    target: float | None = None
    """Greatest |simulated / measured - 1| that meets the target; 0: equal to every run; None: no target."""


METRICS = (
    Metric("tct_mean_s", "mean TCT, s", "{:.2f}", 0.05), Metric("tct_p95_s", "P95 TCT, s", "{:.2f}", 0.10),
    Metric("ttft_mean_s", "mean TTFT, s", "{:.3f}"), Metric("hit_tokens", "tokens hit", "{:,.0f}", 0.0),
    Metric("hit_share", "hit share", "{:.1%}"), Metric("preemptions", "preemptions", "{:,.1f}"),
    Metric("recomputed_tokens", "tokens computed again", "{:,.0f}"),
)


@dataclass(frozen=True)
class Run:
    """What a run gave, simulated or measured. Arrays are (n_steps,), seconds and tokens."""

    ready_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    cached_tokens: NDArray[np.float64]
    preemptions: int
    recomputed_tokens: int


TIMES = ("ready_s", "first_token_s", "done_s")


def figures(trace: Trace, run: Run) -> Figures:
    """The figures of `METRICS`. Raises `UserError` if a step is missing."""
    missing = int(np.isnan(run.done_s).sum())
    if missing:
        raise UserError("run", f"{missing} of {trace.n_steps} steps were not served", "this is a defect: report it")
    tct = np.maximum.reduceat(run.done_s, trace.session_offsets[:-1]) - trace.sessions.arrival_s
    hit, prompt = int(run.cached_tokens.sum()), int(trace.steps.prompt_tokens.sum())
    return {"tct_mean_s": float(tct.mean()), "tct_p95_s": float(np.percentile(tct, 95)),
            "ttft_mean_s": float((run.first_token_s - run.ready_s).mean()), "hit_tokens": hit,
            "hit_share": hit / prompt, "preemptions": run.preemptions, "recomputed_tokens": run.recomputed_tokens}


def measured(trace: Trace, logs: Sequence[EngineLog], pool_blocks: int, block: int) -> tuple[Run, Replayed]:
    """What the engines did, and what the simulator's cache says of their order of events."""
    one_by_one = [replay(trace, [log], pool_blocks, block) for log in logs]
    total = Replayed(*(sum(getattr(r, f) for r in one_by_one) for f in Replayed.__dataclass_fields__))
    ready, first, done = (np.fmax.reduce([getattr(log, c) for log in logs]) for c in TIMES)
    cached = np.maximum.reduce([log.cached_tokens for log in logs]).astype(float)
    preemptions = int(sum(log.preemptions.sum() for log in logs))
    return Run(ready, first, done, cached, preemptions, total.recomputed_tokens), total


def simulated(trace: Trace, shares: Sequence[Sequence[int]], config: SimConfig) -> Run:
    """The same from the simulator: each engine's sessions on a worker of their own, stock vLLM policies."""
    columns = {k: np.full(trace.n_steps, np.nan) for k in (*TIMES, "cached_tokens")}
    preemptions = recomputed = 0
    for share in shares:
        rows = np.isin(trace.steps.session, np.asarray(share))
        result = simulate(trace.select(list(share)), replace(config, workers=1), preset("lru"), slo=False)
        for key, column in columns.items():
            column[rows] = result.steps[key]
        preemptions += int(result.metrics["preemptions"])
        recomputed += int(result.metrics["recomputed_tokens"])
    return Run(**columns, preemptions=preemptions, recomputed_tokens=recomputed)


def step_by_step(ours: Run, theirs: Run) -> dict[str, Any]:
    """How many steps of two runs differ, and by how much: for a clock that does not tremble."""
    apart = np.max([np.abs(getattr(ours, c) - getattr(theirs, c)) for c in TIMES], axis=0)
    return {"steps": len(apart), "other_hits": int((ours.cached_tokens != theirs.cached_tokens).sum()),
            "other_times": int((apart > SAME_S).sum()), "largest_difference_s": float(apart.max(initial=0.0)),
            "preemptions": [ours.preemptions, theirs.preemptions]}


def sticky_shares(trace: Trace, config: SimConfig) -> list[tuple[int, ...]]:
    """Sessions by worker, as sticky placement deals them out in `simulate`."""
    worker = simulate(trace, config, preset("lru"), slo=False).steps["worker"][trace.session_offsets[:-1]]
    return [tuple(np.flatnonzero(worker == w).tolist()) for w in range(config.workers)]


def slowed(profile: CostProfile, factor: float) -> CostProfile:
    """The profile with every time multiplied."""
    names = ("base_s", "per_prefill_token_s", "per_kv_token_s", "per_seq_s", "per_attn_s", "per_context_s")
    return replace(profile, batch_s=tuple(factor * s for s in profile.batch_s),
                   **{n: factor * getattr(profile, n) for n in names})


def spread(runs: Sequence[Figures]) -> dict[str, dict[str, float | None]]:
    """By metric: mean, min, max, and the standard deviation of the mean (None for one run)."""
    out = {}
    for m in METRICS:
        values = np.array([r[m.key] for r in runs], float)
        out[m.key] = {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max()),
                      "mean_sd": float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None}
    return out


def compare(ours: Figures, runs: Sequence[Figures]) -> dict[str, dict[str, Any]]:
    """By metric: the simulated figure beside `spread` of the measured runs; ratio and error to their mean (None where
    that is 0), and whether the target is met (None: there is none)."""
    if not runs:
        raise UserError("comparison", "there is no measured run", "ask for one repeat or more")
    out = {}
    for m, theirs in zip(METRICS, spread(runs).values(), strict=True):
        mine, mean = ours[m.key], theirs["mean"]
        ratio = mine / mean if mean else None
        met = None
        if m.target == 0:
            met = all(r[m.key] == mine for r in runs)
        elif m.target is not None:
            met = ratio is not None and abs(ratio - 1) <= m.target
        within = theirs["min"] <= mine <= theirs["max"]  # type: ignore[operator]
        out[m.key] = {"simulated": mine, "measured": theirs, "ratio": ratio,
                      "error": None if ratio is None else ratio - 1, "within_spread": within, "met": met}
    return out
