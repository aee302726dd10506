"""How far eviction policies are from the best that any could do, on one fixed reference string (open loop)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check_fits
from saga_rl.policies.base import Policy
from saga_rl.policies.registry import make
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.replay import play
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.reference import END, START

LOW_PRESSURE = 0.01
"""Bélády recomputes less than this share of first-time tokens: the ratio's denominator is noise, quote no ratio."""


def bound(trace: Trace, config: SimConfig, names: Sequence[str],
          progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Record `trace` on one worker of `config` (stock: LRU, FCFS), then replay it under Bélády and each of `names`.

    names: eviction specs, see `saga_rl.policies.registry.make`. progress: called with a line before each piece of work.
    Returns the `bound` JSON keys less provenance: `ratio` is tokens computed again over Bélády's, null when Bélády
    computes none again; `low_pressure` marks points that are excluded from claims. Raises `UserError` for an unknown
    policy or a session that does not fit the pool.
    """
    say = progress or (lambda _: None)
    policies: dict[str, Policy] = {name: make("eviction", name) for name in names}
    check_fits(trace, kv_tokens=config.pool_blocks * config.block_tokens)
    say("recording the reference string")
    reference = record_reference(trace, config)
    say("settling what runs together")
    prepared = prepare(reference, config.pool_blocks * config.block_tokens)

    def run(name: str, policy: Policy) -> Any:
        say(f"replaying under {name}")
        return play(prepared, policy, end_hint=config.end_hint, expiry_s=config.expiry_s)

    best = run("belady", make("eviction", "belady"))
    first_time = best.prefilled_tokens - best.recomputed_tokens
    rows = {name: run(name, policy).recomputed_tokens for name, policy in policies.items()}
    return {
        "capacity_tokens": reference.kv_tokens,
        "belady_recomputed_tokens": best.recomputed_tokens,
        "policies": {name: {"recomputed_tokens": tokens,
                            "ratio": tokens / best.recomputed_tokens if best.recomputed_tokens else None}
                     for name, tokens in rows.items()},
        "low_pressure": best.recomputed_tokens < LOW_PRESSURE * first_time,
        "first_time_tokens": first_time,
        "reference": {
            "recorded_under": {"eviction": "lru", "ordering": "fcfs", "admission": "none"},
            "profile": config.profile.name, "population": config.population, "sessions": trace.n_sessions,
            "steps": trace.n_steps, "runs": int((reference.kind == START).sum()),
            "preemptions": int(((reference.kind == END) & (reference.final == 0)).sum()),
            "clipped_blocks": prepared.clipped_blocks, "capped_lookups": prepared.capped_lookups,
            "unclipped_capacity_tokens": prepared.smallest_pool_blocks * config.block_tokens,
        },
    }
