"""The traces that both measurements of AEG inference read: generated ones, and real ones where they are at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.trace import Trace

GENERATED = ("swe-bench", "webarena")
REAL = {"katas": "claude_code_katas/calls.jsonl.gz", "weka": "weka_claude_code/traces.jsonl.gz"}
"""Importer -> file below the folder of real traces."""


def workloads(data: Path | None, scale_real: float = 1.0) -> Iterator[tuple[str, Trace]]:
    """(name, trace), one at a time. data: folder of real traces, None to leave them out; their lengths are multiplied
    by `scale_real`."""
    for name in GENERATED:
        yield name, generate(name, 0)
    if data is not None:
        for name, file in REAL.items():
            trace = import_trace(name, data / file)
            yield name, trace if scale_real == 1.0 else scale_lengths(trace, scale_real)
