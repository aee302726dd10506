"""What the hooks did, in numbers: one JSON object an engine, logged and, if wished, written to a file."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.files import write_json

log = logging.getLogger("vllm.saga_rl")
WRITE_S = 1.0


class Metrics:
    """Counters of one engine or router. Causes are part of the name: `evicted/idle`, `fallback/over budget`.

    state: further figures, read whenever the counters are shown. Logs every `every_s` seconds and writes `folder`/
    `name`.json every `WRITE_S` seconds, from a thread of its own and only after changes.
    """

    def __init__(self, name: str, every_s: float, folder: str | None = None,
                 state: Callable[[], dict[str, Any]] = dict) -> None:
        self.name, self.every_s, self.state = name, every_s, state
        self.path = Path(folder) / f"{name}.json" if folder else None
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self._written: dict[str, Any] = {}
        self._logged: dict[str, Any] = {}
        self._failing = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to log and write."""
        self._thread = threading.Thread(target=self._loop, name="saga-rl metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Log and write once more, and end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * WRITE_S)
        self._write()
        self._log()

    def took(self, what: str, seconds: float) -> None:
        """One decision of kind `what` took so long."""
        self.counts[what] += 1
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def snapshot(self) -> dict[str, Any]:
        """Everything counted so far; decision times as a sum in seconds and as a mean in milliseconds."""
        counts, seconds = dict(self.counts), dict(self.seconds)
        mean = {f"{k}_mean_ms": round(1e3 * s / counts[k], 4) for k, s in seconds.items() if counts.get(k)}
        mean |= {f"{k}_sum_s": round(s, 6) for k, s in seconds.items() if counts.get(k)}
        return {"name": self.name, **dict(sorted(counts.items())), **mean, **self.state()}

    def _loop(self) -> None:
        waited = 0.0
        while not self._stop.wait(WRITE_S):
            self._write()
            waited += WRITE_S
            if waited >= self.every_s:
                waited = 0.0
                self._log()

    def _log(self) -> None:
        have = self.snapshot()
        if have != self._logged:
            self._logged = have
            log.info("saga-rl %s", ", ".join(f"{k} {v}" for k, v in have.items()))

    def _write(self) -> None:
        if self.path is None:
            return
        have = self.snapshot()
        if have == self._written:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, have)
        except (OSError, UserError) as e:
            if not self._failing:
                log.error("saga-rl: cannot write counters (%s); tried again every %g s, until then they go to the log "
                          "only", e, WRITE_S)
            self._failing = True
            return
        self._written, self._failing = have, False
