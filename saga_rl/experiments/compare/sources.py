"""Where the compared sessions come from: generators, files of the user, and recorded collections in a data folder.

Every trace is split in two halves: training (scouting and tuning) and test (what is reported). Halves are by group of
sessions; a trace whose sessions share content by block ids is cut by time instead, or the sharing would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.aeg.generators import generate
from saga_rl.aeg.importers import import_trace, importer_names
from saga_rl.aeg.io import read_trace
from saga_rl.aeg.quality import doubts, quality, sentence
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.split import split
from saga_rl.aeg.stats import infinite_cache_hits
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.provenance import sha256

GENERATED = {"swe-bench": 100, "webarena": 150, "burstgpt": 80}
"""Generated workload -> sessions of one arrangement; four times as many are generated."""
SEED = 1


@dataclass(frozen=True)
class Source:
    """One trace of the experiment. `sessions`: of one arrangement, 0 = a whole half."""

    name: str
    kind: str
    """`generated`, `file` or `imported`."""
    path: str = ""
    sessions: int = 0
    length_factor: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What the trace is determined by, besides the code."""
        return asdict(self) | {"path": "", "sha256": sha256(self.path) if self.path else None}


COLLECTIONS: tuple[tuple[str, str, str, int, dict[str, Any]], ...] = (
    ("weka_claude_code/traces.jsonl.gz", "weka", "weka", 60, {}),
    ("claude_code_katas/calls.jsonl.gz", "katas", "katas", 40, {"rate_per_min": 8.0}),
    ("mooncake/conversation_trace.jsonl.gz", "mooncake-conversation", "mooncake", 800, {}),
    ("mooncake/synthetic_trace.jsonl.gz", "mooncake-synthetic", "mooncake", 800, {}),
)
"""File in the data folder, name, importer, sessions of one arrangement, importer's options."""


def default_sources() -> list[Source]:
    return [Source(name, "generated", sessions=n, options={"seed": SEED, "sessions": 4 * n})
            for name, n in GENERATED.items()]


def file_sources(paths: Sequence[Path]) -> list[Source]:
    """`UserError` if two files would go by one name."""
    out: dict[str, Source] = {}
    for path in paths:
        if path.stem in out:
            raise UserError(path, f"would be named {path.stem!r} like {out[path.stem].path}", "rename one of the two")
        out[path.stem] = Source(path.stem, "file", str(path))
    return list(out.values())


def data_sources(folder: Path) -> list[Source]:
    """The recorded collections that `folder` holds, in `COLLECTIONS`' order. `UserError` if it holds none."""
    if not folder.is_dir():
        raise UserError(folder, "is no folder", "name the folder of recorded traces")
    found = [Source(name, "imported", str(folder / file), sessions, options={"format": fmt, **options})
             for file, name, fmt, sessions, options in COLLECTIONS
             if fmt in importer_names() and (folder / file).exists()]
    if not found:
        raise UserError(folder, "holds none of the recorded traces", "it should hold one of "
                        + ", ".join(file for file, *_ in COLLECTIONS))
    return found


@dataclass(frozen=True)
class Material:
    """A source made ready. `facts` is JSON: what the trace holds, and what was left out."""

    train: Trace
    test: Trace
    facts: dict[str, Any]


def load(source: Source, fits: int = 0) -> Material:
    """Read, import or generate, and split. fits: longest context, tokens, that a recorded collection may have; its
    sessions beyond that are left out, counted and named (0 = none). Raises `UserError`."""
    if source.kind == "generated":
        trace = generate(source.name, **source.options)
    elif source.kind == "file":
        trace = read_trace(source.path)
    else:
        options = dict(source.options)
        trace = import_trace(options.pop("format"), source.path, **options)
    if source.length_factor != 1.0:
        trace = scale_lengths(trace, source.length_factor)
    left_out: list[str] = []
    if fits and source.kind == "imported":
        trace, left_out = without_longer(trace, fits)
    train, test = halves(trace, source.name)
    n = min(source.sessions or trace.n_sessions, train.n_sessions, test.n_sessions)
    context = trace.steps.prompt_tokens + trace.steps.output_tokens
    prompts = int(trace.steps.prompt_tokens.sum())
    return Material(train, test, {
        "kind": source.kind, "source": trace.meta.source, "sessions": trace.n_sessions, "steps": trace.n_steps,
        "arranged_sessions": n,
        "tenants": len(set(trace.sessions.tenant.tolist())), "longest_context_tokens": int(context.max()),
        "median_context_tokens": int(np.median(context)), "length_factor": source.length_factor,
        "infinite_cache_hit_share": float(infinite_cache_hits(trace).sum()) / prompts,
        "quality": quality(trace), "rests_on": sentence(trace), "doubts": doubts(trace),
        "left_out_sessions": left_out, "dropped_by_importer": dict(trace.meta.dropped),
        "arrangement": "consecutive sessions" if trace.meta.hash_block_tokens else "drawn sessions"})


def without_longer(trace: Trace, tokens: int) -> tuple[Trace, list[str]]:
    """The trace without sessions that hold a context longer than `tokens`, and the ids of those."""
    context = trace.steps.prompt_tokens + trace.steps.output_tokens
    longest = np.maximum.reduceat(context, trace.session_offsets[:-1])
    gone = np.flatnonzero(longest > tokens)
    if len(gone) == trace.n_sessions:
        raise UserError(trace.meta.name, f"has no session that fits {tokens:,} tokens", "give larger pools")
    names = [trace.sessions.session_id[i] for i in gone]
    return (trace.select(np.flatnonzero(longest <= tokens)) if names else trace), names


def halves(trace: Trace, name: str) -> tuple[Trace, Trace]:
    """(training, test): by group, or by time where block ids say what sessions share."""
    if trace.meta.hash_block_tokens and trace.n_sessions > 1:
        cut = trace.n_sessions // 2
        return trace.select(np.arange(cut)), trace.select(np.arange(cut, trace.n_sessions))
    if len(set(trace.sessions.group)) < 2:
        raise UserError(name, "has one group of sessions: points and parameters would be set on what is reported",
                        "give a trace of at least 2 groups")
    parts = split(trace, {"train": 0.5, "test": 0.5}, SEED)
    return parts["train"], parts["test"]
