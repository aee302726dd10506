"""Traces on which the simulator's cache is not vLLM's, and why: what the comparisons keep out by construction."""

from __future__ import annotations

import numpy as np
from vllm_twin import OWN, contexts

from saga_rl.aeg.forest import Forest, build_forest
from saga_rl.aeg.trace import Trace


def whole_holds(forest: Forest) -> np.ndarray:
    """Segments that one step's context covers only in part while other chains use them too. A request there holds more
    blocks in the simulator than in vLLM, since a pool holds whole segments."""
    rows = np.flatnonzero(np.diff(forest.path_offsets) > 0)
    last = forest.path[forest.path_offsets[rows + 1] - 1]
    in_part = np.unique(last[forest.context_blocks[rows] < forest.seg_start[last] + forest.seg_blocks[last]])
    chain = forest.chain[np.repeat(np.arange(len(forest.chain)), np.diff(forest.path_offsets))]
    low, high = np.full(len(forest.seg_parent), np.iinfo(np.int32).max), np.full(len(forest.seg_parent), -1)
    np.minimum.at(low, forest.path, chain)
    np.maximum.at(high, forest.path, chain)
    return in_part[low[in_part] < high[in_part]]


def ancestors(trace: Trace) -> list[set[int]]:
    """By step: the steps that must be done before it is sent."""
    t, off = trace.steps, trace.session_offsets
    out: list[set[int]] = []
    for i in range(trace.n_steps):
        up = {int(p + off[t.session[i]]) for p in t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]]}
        out.append(up.union(*(out[p] for p in up)))
    return out


def aligned_repeats(trace: Trace, block: int) -> list[int]:
    """Steps whose prompt ends where a block ends and may be cached to its end before they run. vLLM computes the last
    block again and keeps both copies."""
    forest, above = build_forest(trace, block), ancestors(trace)
    users: dict[tuple[int, int], list[int]] = {}
    last: dict[int, tuple[int, int]] = {}
    for i in range(trace.n_steps):
        at, end = 0, int(trace.steps.prompt_tokens[i]) // block
        for segment in forest.path[forest.path_offsets[i]:forest.path_offsets[i + 1]].tolist():
            for k in range(min(int(forest.seg_blocks[segment]), int(forest.context_blocks[i]) - at)):
                users.setdefault((segment, k), []).append(i)
                at += 1
                if at == end and int(trace.steps.prompt_tokens[i]) % block == 0:
                    last[i] = (segment, k)
    return [i for i, place in last.items() if any(j != i and i not in above[j] for j in users[place])]


def foreseen(trace: Trace, block: int) -> list[int]:
    """Steps whose prompt holds a token of an answer that need not be there yet: its step is no ancestor."""
    t, above = trace.steps, ancestors(trace)
    begin = OWN + np.concatenate([[0], np.cumsum(t.prompt_tokens + t.output_tokens)])
    out = []
    for i, tokens in enumerate(contexts(trace, block)):
        prompt = tokens[:int(t.prompt_tokens[i])]
        prompt = prompt[(prompt >= OWN) & (prompt < begin[-1])]
        source = np.searchsorted(begin, prompt, side="right") - 1
        answered = prompt - begin[source] >= t.prompt_tokens[source]
        if not set(source[answered].tolist()) <= above[i]:
            out.append(i)
    return out


def comparable(trace: Trace, block: int) -> bool:
    """None of the known deviations can show."""
    return not (aligned_repeats(trace, block) or foreseen(trace, block) or len(whole_holds(build_forest(trace, block))))
