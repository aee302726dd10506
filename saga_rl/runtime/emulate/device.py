"""The timeline of one emulated device: what is given to it is done one after the other, each for as long as it costs.

Seconds of cost are the device's; `time_scale` of them pass in one real second. All times given and returned are real
(`time.monotonic`), so that callers can sleep until then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from saga_rl.runtime.emulate.batch import Batch
from saga_rl.runtime.emulate.faults import Faults
from saga_rl.sim.cost.iteration import seconds as iteration_seconds
from saga_rl.sim.cost.profile import CostProfile


class Device:
    """Computes batches in the order in which they are submitted. `clock` and `sleep` are replaced by tests."""

    def __init__(self, profile: CostProfile, time_scale: float = 1.0, clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.time_scale, self.clock, self._sleep = time_scale, clock, sleep
        self.faults = Faults()
        self.free_at = -math.inf
        """Real time at which everything submitted so far is done."""
        self.busy_s = 0.0
        """Seconds of the device spent computing."""
        self.batches = 0
        self._cost = profile.vector()
        iteration_seconds(self._cost, 0.0, 0.0, 0.0, 0.0, 0.0)  # compiled now, not in the first step

    def seconds(self, batch: Batch) -> float:
        """Seconds of the device that the batch takes."""
        return float(iteration_seconds(self._cost, float(batch.prefill), float(batch.pairs), float(batch.context),
                                       float(batch.kv_read), float(batch.decoding)))

    def submit(self, batch: Batch) -> float:
        """Start the batch when all before it are done; returns when it is done (infinite on a device that hangs)."""
        took = self.seconds(batch) * self.faults.slowness
        start = max(self.clock(), self.free_at) + self.faults.take_stall() / self.time_scale
        self.free_at = start + took / self.time_scale
        self.busy_s += took
        self.batches += 1
        return self.free_at

    def wait_until(self, when: float) -> None:
        """Return when it is `when`. A device that hangs never returns."""
        while (left := when - self.clock()) > 0:
            self._sleep(min(left, 3600.0))
