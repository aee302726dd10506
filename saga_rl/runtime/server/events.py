"""Structured logs: one JSON object a line on standard error, when the configuration asks for it (`events`).

Keys of every line: `event`, `time` (seconds since 1970), `pid`; the rest depends on the event
(docs/reference/metrics.md).
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

_on = False


def enable(on: bool) -> None:
    """Whether `emit` writes, in this process."""
    global _on
    _on = on


def enabled() -> bool:
    return _on


def emit(event: str, **fields: Any) -> None:
    """Write one line; nothing where events are off. Never raises."""
    if not _on:
        return
    line = {"event": event, "time": round(time.time(), 3), "pid": os.getpid(), **fields}
    try:
        sys.stderr.write(json.dumps(line, default=str) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # standard error is closed or full: serving matters more than a line of the log
