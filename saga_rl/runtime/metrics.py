"""What the hooks did, in numbers: one JSON object an engine, logged and, if wished, written to a file."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from saga_rl.files import write_json

log = logging.getLogger("vllm.saga_rl")


class Metrics:
    """Counters of one engine or router. Causes are part of the name: `evicted/idle`, `fallback/over budget`."""

    def __init__(self, name: str, every_s: float, folder: str | None = None) -> None:
        self.name, self.every_s = name, every_s
        self.path = Path(folder) / f"{name}.json" if folder else None
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self._due = 0.0
        self._last: dict[str, Any] = {}

    def took(self, what: str, seconds: float) -> None:
        """One decision of kind `what` took so long."""
        self.counts[what] += 1
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def snapshot(self, **more: Any) -> dict[str, Any]:
        """Everything counted so far; mean decision times in milliseconds."""
        mean = {f"{k}_mean_ms": round(1e3 * s / self.counts[k], 4) for k, s in self.seconds.items()}
        return {"name": self.name, **dict(sorted(self.counts.items())), **mean, **more}

    def report(self, now: float, **more: Any) -> None:
        """Log and write if `every_s` seconds have passed and something changed."""
        if now < self._due:
            return
        self._due = now + self.every_s
        self.flush(**more)

    def flush(self, **more: Any) -> None:
        """Log and write now."""
        have = self.snapshot(**more)
        if have == self._last:
            return
        self._last = have
        log.info("saga-rl %s", ", ".join(f"{k} {v}" for k, v in have.items() if k != "name"))
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, have)
            except OSError as e:
                log.error("saga-rl: cannot write %s (%s); counters go to the log only", self.path, e.strerror)
                self.path = None
