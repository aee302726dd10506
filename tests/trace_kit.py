"""Traces as an import makes them, without a file to import."""

from __future__ import annotations

from dataclasses import replace

from saga_rl.aeg.quality import KEY, PARTS
from saga_rl.aeg.trace import Trace

DOUBT = "completion times rest on values that were not recorded: tools 25 %"


def doubtful(trace: Trace) -> Trace:
    """The trace as if it had been imported, a quarter of its tools' waits missing."""
    counts = {p: {"recorded": 3, "estimated": 0, "missing": int(p == "tools")} for p in PARTS}
    return replace(trace, meta=replace(trace.meta, source="imported:jsonl", notes={**trace.meta.notes, KEY: counts}))
