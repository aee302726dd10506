"""What a trace holds, in figures: sizes, quantiles, gaps by tool, and how much a cache could serve."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.quality import quality
from saga_rl.aeg.trace import Trace

QUANTILES = (5, 50, 95, 99, 100)


def stats(trace: Trace) -> dict[str, Any]:
    """JSON-ready figures; tokens and seconds. An empty distribution is null.

    `infinite_cache_hit_share`: prompt tokens that an endless cache, shared by all, would have served, over all prompt
    tokens, when requests come at their recorded times (or arrivals and gaps, where calls take no time). The same in
    blocks of the ids that the trace holds, where a partial last block counts as a block (as the authors of the Mooncake
    traces count): `infinite_cache_block_hit_share`, null without ids.
    """
    t, s = trace.steps, trace.sessions
    context = t.prompt_tokens + t.output_tokens
    calls = t.tool >= 0
    span = float(s.arrival_s[-1] - s.arrival_s[0]) if trace.n_sessions else 0.0
    total = int(t.prompt_tokens.sum())
    hits, block = infinite_cache_hits(trace), trace.meta.hash_block_tokens
    blocks = (-(-t.prompt_tokens // block)).sum() if block else 0
    return {
        "name": trace.meta.name, "source": trace.meta.source, "seed": trace.meta.seed,
        "sessions": trace.n_sessions, "steps": trace.n_steps, "groups": len(set(s.group)),
        "tenants": _counts(s.tenant, trace.tenants), "agent_types": _counts(s.agent_type, trace.agent_types),
        "arrivals_span_s": span,
        "arrivals_per_min": 60.0 * (trace.n_sessions - 1) / span if span > 0 else None,
        "prompt_tokens_total": total, "output_tokens_total": int(t.output_tokens.sum()),
        "prompt_output_ratio": total / int(t.output_tokens.sum()) if trace.n_steps else None,
        "subagent_step_share": float((t.agent > 0).mean()) if trace.n_steps else None,
        "joins": int((np.diff(t.parent_offsets) > 1).sum()),
        "deadline_share": float(np.isfinite(s.deadline_s).mean()) if trace.n_sessions else None,
        "infinite_cache_hit_share": float(hits.sum()) / total if total else None,
        "infinite_cache_block_hit_share": float((-(-hits // block)).sum() / blocks) if blocks else None,
        "steps_per_session": _quantiles(np.diff(trace.session_offsets)),
        "prompt_tokens": _quantiles(t.prompt_tokens), "output_tokens": _quantiles(t.output_tokens),
        "context_tokens": _quantiles(context), "appended_tokens": _quantiles(t.prompt_tokens - t.prefix_tokens),
        "tool_s": {name: {"calls": int((t.tool == i).sum()), **(_quantiles(t.tool_s[t.tool == i]) or {})}
                   for i, name in enumerate(trace.tools) if (t.tool == i).any()},
        "tool_s_all": _quantiles(t.tool_s[calls]), "think_s": _quantiles(t.think_s[t.think_s > 0]),
        "quality": quality(trace), "dropped": dict(trace.meta.dropped), "notes": dict(trace.meta.notes),
    }


def nominal_start_s(trace: Trace) -> NDArray[np.float64]:
    """(n_steps,) recorded start times; where a session lacks one, arrival and gaps, with calls taking no time."""
    t = trace.steps
    start = t.start_s.copy()
    known = np.isfinite(start)
    for s in np.unique(t.session[~known]):
        first, last = trace.session_offsets[s], trace.session_offsets[s + 1]
        for i in range(first, last):
            at = trace.sessions.arrival_s[s]
            for p in t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]] + first:
                gap = t.tool_s[p] + t.think_s[p] if t.agent[p] == t.agent[i] else 0.0
                at = max(at, start[p] + gap)
            start[i] = at
    return start


def infinite_cache_hits(trace: Trace) -> NDArray[np.int64]:
    """(n_steps,) prompt tokens of each step that earlier steps (of any session) have computed already."""
    t, off, block = trace.steps, trace.session_offsets, trace.meta.hash_block_tokens
    hits = np.zeros(trace.n_steps, np.int64)
    shared_seen: dict[int, int] = {}
    known: dict[tuple[int, int], int] = {}
    paths: dict[int, list[int]] = {}
    roots = 0
    for i in np.lexsort((np.arange(trace.n_steps), nominal_start_s(trace))):
        prefix, named = int(t.prefix_tokens[i]), int(t.prefix_step[i])
        if named >= 0:
            hit = prefix
        else:
            text = int(t.shared_prefix[i])
            hit = min(prefix, shared_seen.get(text, 0))
            shared_seen[text] = max(prefix, shared_seen.get(text, 0))
        ids = t.hashes[t.hash_offsets[i]:t.hash_offsets[i + 1]].tolist()
        if block:
            above = paths.get(int(off[t.session[i]]) + named, []) if named >= 0 else []
            aligned = prefix % block == 0 and prefix // block <= len(above) and (named >= 0 or prefix == 0)
            if not aligned:
                roots += 1  # ids that do not begin at a block of known content share nothing
            path = above[:prefix // block] if aligned else []
            node = path[-1] if path else (0 if aligned else -roots)
            growing = hit == prefix
            for h in ids:
                seen = (node, h) in known
                node = known.setdefault((node, h), len(known) + 1)
                path.append(node)
                growing = growing and seen
                hit += block if growing else 0
            paths[int(i)] = path
        hits[i] = min(hit, int(t.prompt_tokens[i]))
    return hits


def _counts(codes: NDArray, names: list[str]) -> dict[str, int]:
    n = np.bincount(codes, minlength=len(names))
    return {name: int(k) for name, k in zip(names, n, strict=True) if k}


def _quantiles(values: NDArray) -> dict[str, float] | None:
    if not len(values):
        return None
    points = np.percentile(values, QUANTILES)
    named = {("max" if q == 100 else f"p{q}"): float(v) for q, v in zip(QUANTILES, points, strict=True)}
    return {"mean": float(np.mean(values)), **named}
