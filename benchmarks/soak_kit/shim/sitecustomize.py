"""Loaded by every Python process of a server whose environment names a folder in SOAK_FAULTS: its wall clock is ahead
by what the file `clock` in it says (seconds; looked at ten times a second). The monotonic clock is left alone, as it
is when a real machine's clock is set."""

import os
import time

FOLDER = os.environ.get("SOAK_FAULTS")


def _jumping(path: str) -> None:
    real, real_ns, state = time.time, time.time_ns, [0.0, 0.0]

    def ahead() -> float:
        now = time.monotonic()
        if now - state[0] > 0.1:
            state[0] = now
            try:
                with open(path) as f:
                    state[1] = float(f.read() or 0)
            except (OSError, ValueError):
                pass
        return state[1]

    time.time = lambda: real() + ahead()
    time.time_ns = lambda: real_ns() + int(ahead() * 1e9)


if FOLDER:
    _jumping(os.path.join(FOLDER, "clock"))
