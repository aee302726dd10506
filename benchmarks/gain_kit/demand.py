"""How much KV the live sessions want, and the pool that they oversubscribe so many times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from fidelity_kit.settings import NOMINAL
from numpy.typing import NDArray

from gain_kit.settings import Setup
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

F64 = NDArray[np.float64]


def live_tokens(trace: Trace, sent_s: F64, done_s: F64, engines: int, block: int) -> float:
    """KV tokens that live chains hold, averaged over the time in which new sessions still start.

    sent_s, done_s: (n_steps,) seconds. A chain (one agent of a session) holds the whole blocks of its step's context
    from the sending of the step to that of its next, the last step's until that is done. A text that chains share
    counts once an engine, from its first use to its last; the chains that begin with it hold the rest.
    """
    t = trace.steps
    held = _rounded(t.prompt_tokens + t.output_tokens, block)
    chain = t.session.astype(np.int64) * (int(t.agent.max()) + 1) + t.agent
    order = np.lexsort((sent_s, chain))
    begin = np.concatenate([[True], np.diff(chain[order]) != 0])
    of = np.cumsum(begin) - 1
    root, last = order[begin], np.concatenate([begin[1:], [True]])
    text = np.where(t.prefix_step[root] < 0, t.shared_prefix[root], -1)
    common = np.where(text >= 0, t.prefix_tokens[root] // block * block, 0)
    own = held[order] - common[of]
    grown = own - np.where(begin, 0, np.concatenate([[0], own[:-1]]))
    ends = np.maximum.reduceat(done_s[order], np.flatnonzero(begin))
    changes = [(sent_s[order], grown), (ends, -own[last])]
    for code in np.unique(text[text >= 0]):
        users = text == code
        size = engines * common[users].max()
        changes.append((np.array([sent_s[root[users]].min(), ends[users].max()]), np.array([size, -size])))
    starts = np.minimum.reduceat(sent_s, trace.session_offsets[:-1])
    return _mean(np.concatenate([c[0] for c in changes]), np.concatenate([c[1] for c in changes]),
                 float(sent_s.min()), float(starts.max()))


def _rounded(n: NDArray, block: int) -> NDArray:
    return -(-n // block) * block


def _mean(at: F64, change: NDArray, begin: float, end: float) -> float:
    """Time average over begin..end of what has accumulated by then. With begin == end, the value there."""
    order = np.argsort(at, kind="stable")
    at, level = at[order], np.cumsum(change[order])
    if end <= begin:
        return float(level[np.searchsorted(at, begin, side="right") - 1])
    inside = (at > begin) & (at < end)
    edges = np.concatenate([[begin], at[inside], [end]])
    values = level[np.searchsorted(at, edges[:-1], side="right") - 1]
    return float((np.diff(edges) * values).sum() / (end - begin))


@dataclass(frozen=True)
class Pools:
    """demand: live tokens, the mean over the repeats' draws. tokens: of one engine, by pressure. whole: holds all."""

    demand: float
    demands: tuple[float, ...]
    tokens: tuple[int, ...]
    whole: int


def nominal_demand(trace: Trace, setup: Setup) -> float:
    """`live_tokens` of a simulated run with infinite memory: it has to be known before anything is measured."""
    block = setup.block_tokens
    room = int((trace.steps.prompt_tokens + trace.steps.output_tokens).sum()) + block * (trace.n_steps + 1)
    config = SimConfig(workers=setup.engines, kv_tokens=room, block_tokens=block, max_num_seqs=setup.max_num_seqs,
                       max_batched_tokens=setup.max_batched_tokens, profile=NOMINAL, population=setup.alive)
    steps = simulate(trace, config, preset("lru"), seed=setup.seed, slo=False).steps
    return live_tokens(trace, steps["ready_s"], steps["done_s"], setup.engines, block)


def pools(traces: list[Trace], setup: Setup) -> Pools:
    """The pool of one engine at each pressure, whole blocks. `UserError` where a context would not fit in one."""
    demands = tuple(nominal_demand(t, setup) for t in traces)
    demand, block = float(np.mean(demands)), setup.block_tokens
    tokens = tuple(round(demand / p / setup.engines / block) * block for p in setup.pressures)
    if min(tokens) < setup.model_len:
        raise UserError("--pressures", f"leave an engine {min(tokens):,} KV tokens, and a context may have "
                        f"{setup.model_len:,}", "keep more sessions alive, or less pressure")
    context = max(int(_rounded(t.steps.prompt_tokens + t.steps.output_tokens, block).sum()) for t in traces)
    largest = max(sum(_longest(t, block)) for t in traces)
    return Pools(demand, demands, tokens, math.ceil(min(context, 2 * largest) / block) * block)


def _longest(trace: Trace, block: int) -> list[int]:
    """The longest context of every chain, whole blocks."""
    t = trace.steps
    chain = t.session.astype(np.int64) * (int(t.agent.max()) + 1) + t.agent
    held = _rounded(t.prompt_tokens + t.output_tokens, block)
    return [int(held[chain == c].max()) for c in np.unique(chain)]
