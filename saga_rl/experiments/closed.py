"""What simulated cells of every experiment are made of: their policies, and a pool that never fills."""

from __future__ import annotations

from collections.abc import Mapping

from saga_rl.aeg.trace import Trace
from saga_rl.policies.base import PolicySet
from saga_rl.policies.presets import from_specs, preset


def policies_of(given: Mapping[str, str]) -> PolicySet:
    """Four specs by decision, or a preset or checkpoint under `set`."""
    return preset(given["set"]) if "set" in given else from_specs(dict(given))


def roomy(trace: Trace, tokens: int) -> int:
    """A pool, tokens, that never fills: room for every context of `trace` at once; at least `tokens`."""
    every = int((trace.steps.prompt_tokens + trace.steps.output_tokens).sum()) + 64 * (trace.n_steps + 1)
    return max(every, tokens)
