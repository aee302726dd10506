"""What keeps a server alive whatever a policy or a hook of ours does: fall back, count, log, go on."""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping

import numpy as np
from numpy.typing import NDArray

from saga_rl.policies.learned.guard import CHUNK, LOG_EVERY_S, Guard

log = logging.getLogger("vllm.saga_rl")
FIRST = 4
"""Rows before the first look at the clock: a policy that takes long for one row is caught early. From `CHUNK` rows on
each part is as long as all before it, so a late policy costs at most about twice its budget, and a look little."""
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class SafeGuard(Guard):
    """`Guard` for a server. Two more causes: "raised"; and "paused": a policy that raised, or was over budget twice in
    a row (once may be the machine's doing), is left alone for `PAUSE_S`, twice as long each time until it decides in
    time again. So a slow one costs the server a late decision in a while instead of one in each step."""

    _paused_until = -np.inf
    _pause_s = PAUSE_S
    _late = False

    @property
    def paused(self) -> bool:
        return self._clock() < self._paused_until

    def was_late(self) -> None:
        """A call of the policy outside `scores` took too long."""
        self.fallbacks["over budget"] += 1
        if self._late:
            self.pause()
        self._late = True

    def pause(self) -> None:
        """Leave the policy alone for a while."""
        self._paused_until = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _try(self, rows: NDArray[np.float64], n: int, out: NDArray[np.float64]) -> str | None:
        started = self._clock()
        if started < self._paused_until:
            return "paused"
        cause, start, stop, p = None, 0, min(FIRST, n), self.policy
        try:
            while start < n:
                self._score(rows, start, stop, p.params, self._scratch, out)
                if self._clock() > started + self.budget_s:
                    cause = "over budget"
                    break
                start, stop = stop, min(max(2 * stop, CHUNK), n)
        except Exception:  # compiled code that raises in spite of `policies.base`
            cause = "raised"
        if cause is not None:
            if self._late or cause == "raised":
                self.pause()
            self._late = True
            return cause
        self._late, self._pause_s = False, PAUSE_S
        return None if np.isfinite(out).all() else "non-finite score"


class Failures:
    """Counts and logs what hooks of ours raised: `failed/WHERE`, each place at most once a minute in the log."""

    def __init__(self, counts: MutableMapping[str, int]) -> None:
        self.counts = counts
        self._logged: dict[str, float] = {}

    def __call__(self, where: str) -> None:
        """Call it while the exception is handled."""
        name = f"failed/{where}"
        self.counts[name] = self.counts.get(name, 0) + 1
        now = time.monotonic()
        if now - self._logged.get(where, -np.inf) >= LOG_EVERY_S:
            self._logged[where] = now
            log.exception("saga-rl: %s failed; vLLM goes on without it (%d times so far)", where, self.counts[name])
