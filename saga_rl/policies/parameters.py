"""Checks on what a user may set on a policy."""

from __future__ import annotations

import math

from saga_rl.errors import UserError

EXPIRY_S = 300.0
"""Seconds of silence after which an idle chain is presumed to have ended, unless another number is given: here and
nowhere else."""

DEFAULT_PROFILE = "h100-llama3-70b-tp4"
"""What an iteration costs where nobody names a cost profile: a fitted one."""

DEFAULT_PRESET = "auto"
"""What serves where nobody names a policy, and what `saga-rl learn` falls back on."""


def bounded(policy: str, key: str, value: float, low: float, high: float) -> float:
    """`value` as a float; `UserError` unless it is finite and low <= value <= high."""
    if not math.isfinite(value) or not low <= value <= high:
        raise UserError(f"policy {policy!r}", f"{key} is {value:g}, outside [{low:g}, {high:g}]",
                        f"choose {key} between {low:g} and {high:g}")
    return float(value)
