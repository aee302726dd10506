"""How much of a trace was recorded: what share of lengths, times, ends and tools' waits is recorded, estimated or
missing.

Importers count it call by call and keep the counts in `meta.notes["quality"]`, which parts of a split and scaled
traces inherit. Who quotes a completion time says this line beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saga_rl.aeg.trace import Trace

PARTS = {"lengths": "prompt and output tokens of calls", "times": "when calls were sent", "ends": "when calls ended",
         "tools": "seconds between a call and its agent's next: tools and people"}
KINDS = ("recorded", "estimated", "missing")
KEY = "quality"


@dataclass
class Quality:
    """Counts by part and kind."""

    counts: dict[str, dict[str, int]] = field(default_factory=lambda: {p: dict.fromkeys(KINDS, 0) for p in PARTS})

    def add(self, part: str, kind: str, n: int = 1) -> None:
        """Count `n` calls of which `part` is of `kind`."""
        self.counts[part][kind] += n

    def call(self, *, lengths: str = "recorded", time: bool, end: bool) -> None:
        """Count one call: its lengths of a kind, its end recorded or estimated, its time recorded or missing."""
        self.add("lengths", lengths)
        self.add("times", "recorded" if time else "missing")
        self.add("ends", "recorded" if end else "estimated" if time else "missing")


def quality(trace: Trace) -> dict[str, dict[str, float | None]] | None:
    """Part -> kind -> share of the calls it concerns (null where it concerns none); None where nobody counted.

    Recordings of our server are recorded throughout; generated traces and imports of before this was counted say None.
    """
    counts = trace.meta.notes.get(KEY)
    if not isinstance(counts, dict):
        if trace.meta.source.startswith("recorded:"):
            return {p: dict(zip(KINDS, (1.0, 0.0, 0.0), strict=True)) for p in PARTS}
        return None
    out: dict[str, dict[str, float | None]] = {}
    measured = ("times", "ends") if trace.meta.source.startswith("recorded:") else ()  # a replay of an imported trace
    for part in PARTS:
        if part in measured:
            out[part] = dict(zip(KINDS, (1.0, 0.0, 0.0), strict=True))
            continue
        of_part = counts.get(part, {})
        total = sum(of_part.get(k, 0) for k in KINDS)
        out[part] = {k: of_part.get(k, 0) / total if total else None for k in KINDS}
    return out


def sentence(trace: Trace) -> str:
    """The quality line, such as `lengths recorded; tools 80 % recorded, 20 % missing`."""
    found = quality(trace)
    if found is None:
        kind = trace.meta.source.partition(":")[0]
        return "all of it generated" if kind == "generated" else "not counted when this trace was made"
    words = []
    for part, shares in found.items():
        given = {k: v for k, v in shares.items() if v}
        if len(given) == 1:
            words.append(f"{part} {next(iter(given))}")
        elif given:
            words.append(f"{part} " + ", ".join(f"{_percent(v)} {k}" for k, v in given.items()))
    factor = trace.meta.notes.get("length_factor", 1.0)
    arrivals = trace.meta.notes.get("arrivals", "recorded")
    return "; ".join(words) + (f"; arrivals laid out ({arrivals})" if arrivals != "recorded" else "") + (
        f"; lengths scaled by {factor:g}" if factor != 1.0 else "")


def doubts(trace: Trace) -> str:
    """One sentence for who quotes completion times of this trace; empty where all that they rest on was recorded."""
    found: dict[str, Any] | None = quality(trace)
    if found is None:
        return ""
    weak = [f"{part} {_percent(1 - share)}" for part in ("lengths", "tools")
            if (share := found[part]["recorded"]) is not None and share < 1]
    return f"completion times rest on values that were not recorded: {', '.join(weak)}" if weak else ""


def _percent(share: float) -> str:
    """Rounded, but never to all or nothing what is neither."""
    if share == 1.0 or 0.005 <= share <= 0.995:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %" if share < 0.5 else "over 99 %"
