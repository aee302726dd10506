"""The clock that policies, placement and recordings go by: this machine's, or an emulated device's.

On an emulated device with a time scale, thresholds in seconds (expiry, starvation, what tools take) mean its seconds.
Time budgets of decisions, timeouts of the operating system's doing and vLLM's own metrics stay in real seconds.
"""

from __future__ import annotations

import time
from functools import cache

from saga_rl.runtime.config.emulated import active


@cache
def scale() -> float:
    """Seconds of this clock that pass in one real second; 1 without emulation."""
    settings = active()
    return 1.0 if settings is None else settings.time_scale


def seconds() -> float:
    """Seconds since some moment in the past; never goes back."""
    return time.monotonic() * scale()
