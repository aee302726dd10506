"""How much KV the live sessions want: what a load means in sessions alive at once, and a pool that holds everything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile

F64 = NDArray[np.float64]


def live_tokens(trace: Trace, sent_s: F64, done_s: F64, engines: int, block: int, at_least_s: float = 0.0) -> float:
    """KV tokens that live chains hold, averaged while new sessions still start, and until `at_least_s`.

    sent_s, done_s: (n_steps,) seconds. A chain (one agent of a session) holds the whole blocks of its step's context
    from the sending of the step to that of its next, the last step's until that is done. A text that chains share
    counts once an engine, from its first use to its last; the chains that begin with it hold the rest.
    """
    t = trace.steps
    held = _rounded(t.prompt_tokens + t.output_tokens, block)
    chain = chains(trace)
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
                 float(sent_s.min()), max(float(starts.max()), at_least_s))


def chains(trace: Trace) -> NDArray[np.int64]:
    """(n_steps,) a number for each agent of each session."""
    t = trace.steps
    return t.session.astype(np.int64) * (int(t.agent.max()) + 1) + t.agent


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


def demand(trace: Trace, alive: int, engines: int, profile: CostProfile, block: int) -> float:
    """`live_tokens` of a simulated run with infinite memory and `alive` sessions at once."""
    config = SimConfig(workers=engines, kv_tokens=whole_pool([trace], block), block_tokens=block, profile=profile,
                       population=alive)
    steps = simulate(trace, config, preset("lru"), slo=False).steps
    ends = np.maximum.reduceat(steps["done_s"], trace.session_offsets[:-1])
    # Until the first is over, where all start at once.
    return live_tokens(trace, steps["ready_s"], steps["done_s"], engines, block, float(np.nanmin(ends)))


def makespan_s(trace: Trace, alive: int, engines: int, pool: int, profile: CostProfile, block: int) -> float:
    """Seconds that a run of stock takes in simulation."""
    config = SimConfig(workers=engines, kv_tokens=pool, block_tokens=block, profile=profile, population=alive)
    return float(np.nanmax(simulate(trace, config, preset("lru"), slo=False).steps["done_s"]))


def concurrency_for(load: float, traces: Sequence[Trace], engines: int, pool: int, profile: CostProfile,
                    block: int) -> int:
    """The sessions alive at once whose demand is nearest to `load` times all pools. Raises `UserError` where even all
    at once want less."""
    wanted, most = load * engines * pool, min(t.n_sessions for t in traces)

    def at(alive: int) -> float:
        return float(np.mean([demand(t, alive, engines, profile, block) for t in traces]))

    low, high = 1, most
    if (top := at(most)) < wanted:
        raise UserError("--load", f"is {load:g}, and all {most} sessions at once want {top / engines / pool:.2f} times "
                        f"the pools of {engines} x {pool:,} tokens", "play more sessions (--sessions), or give a "
                        "smaller --kv-tokens or --load")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < wanted else (low, middle)
    return min((low, high), key=lambda n: abs(at(n) - wanted))


def whole_pool(traces: Sequence[Trace], block: int) -> int:
    """KV tokens of one engine that hold all that a run computes for the first time, whole blocks."""
    most = 0
    for trace in traces:
        t = trace.steps
        new = t.prompt_tokens + t.output_tokens - np.where(t.prefix_step >= 0, t.prefix_tokens, 0)
        most = max(most, int((_rounded(new, block) + block).sum()))
    return most + block
