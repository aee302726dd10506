"""Valid feature rows for policy tests, by decision: named columns for hand-made ones, ranges for random ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from saga_rl.policies import features as F
from saga_rl.policies import registry
from saga_rl.policies.base import DECISIONS, Policy
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, save_checkpoint
from saga_rl.policies.state import chains as ch

COLUMNS = {"eviction": F.EVICTION, "placement": F.PLACEMENT, "ordering": F.ORDERING, "admission": F.ADMISSION}
ALL = [(decision, name) for decision in DECISIONS for name in registry.names(decision)]
OTHERS = {"eviction": "lru", "placement": "saga", "ordering": "fcfs", "admission": "none"}

_FLAGS = {"waiting", "ended", "shared", "preempted", "home", "new", "begun"}
_SHARES = {"p_return_10s", "p_end", "p_reuse", "recency", "size", "used", "live", "pinned", "hit", "slots"}
_RANGES = {"ttl_left": (-1.0, 1.0), "age_s": (0.0, 1e8), "afs": (0.0, 1e9), "arrival_s": (0.0, 2e9),
           "session_s": (0.0, 2e9), "steps_left": (1.0, 1e4), "pool_blocks": (1.0, 1e6), "service": (0.0, 1e12),
           "least_service": (0.0, 1e12)}
_COUNTS = {"tasks", "draw", "ring", "pool_blocks", "in_flight", "running", "active", "pool"}
EVENTS = {"eviction": (F.BEGIN, F.RELEASE, F.EVICT), "admission": (F.BEGIN,)}
"""What a policy with memory is told, by decision."""
MEMORIES = {"eviction": (F.E_MINE, ch.REMEMBERED + F.HERE), "admission": (F.A_HERE, F.HERE)}
"""By decision: the first column that shows what the policy remembers, and how many there are."""


def row(decision: str, **values: float) -> np.ndarray:
    """A row of zeros (oracle NaN) with the named columns set."""
    out = np.zeros(len(COLUMNS[decision]))
    if decision == "eviction":
        out[F.E_ORACLE] = np.nan
    for name, value in values.items():
        out[COLUMNS[decision].index(name)] = value
    return out


def score(policy: Policy, **values: float) -> float:
    return policy.score(row(policy.decision, **values), policy.params, np.zeros(policy.scratch))


def _column(decision: str, name: str) -> st.SearchStrategy[float]:
    if name in _FLAGS:
        return st.sampled_from([0.0, 1.0])
    if name == "oracle":
        return st.floats(0, 1e12) | st.just(np.inf)
    if name.startswith("event"):
        return st.just(0.0)  # a row to be scored; `events` fills them
    if name in _COUNTS:
        low, high = _RANGES.get(name, (0.0, 1e6))
        return st.integers(int(low), int(high)).map(float)
    if name in _SHARES and decision != "admission":
        return st.floats(0, 1)
    if name.endswith("_log"):
        return st.floats(0, 25)
    if name.endswith("_share"):
        return st.floats(0, 50)  # of the pool: what is needed may be many pools
    return st.floats(*_RANGES.get(name, (0.0, 1e6)))


def rows(decision: str) -> st.SearchStrategy[np.ndarray]:
    """Random rows to be scored, within what `features` can write."""
    return st.tuples(*(_column(decision, n) for n in COLUMNS[decision])).map(np.array)


@st.composite
def events(draw, decision: str, remembered: np.ndarray | None = None) -> np.ndarray:
    """A random row that tells what happened. remembered: what it shows of the policy's memory, any numbers if None."""
    out = draw(rows(decision))
    if remembered is not None:
        first, n = MEMORIES[decision]
        out[first:first + n] = remembered
    event, blocks, total = (COLUMNS[decision].index(k) for k in ("event", "event_blocks", "event_total"))
    out[event] = draw(st.sampled_from(EVENTS[decision]))
    out[total] = draw(st.integers(0, 10**6))
    if out[event] == F.BEGIN:
        out[blocks] = draw(st.integers(0, int(out[total])))
    elif out[event] == F.RELEASE:
        out[blocks] = out[total]
    else:
        out[blocks] = draw(st.integers(1, 10**6))
        out[F.E_EVENT_SCORE] = draw(st.floats(-1e12, 1e12))
    return out


def network(n_in: int, hidden: tuple[int, ...] = (8, 8), seed: int = 0) -> tuple[list, np.ndarray, np.ndarray]:
    """(layers, mean, std) with random weights."""
    rng = np.random.default_rng(seed)
    sizes = (n_in, *hidden, 1)
    layers = [(rng.normal(size=(o, i)).astype(np.float32), rng.normal(size=o).astype(np.float32))
              for i, o in pairwise(sizes)]
    return layers, rng.normal(size=n_in), rng.uniform(0.5, 2.0, n_in)


def write_checkpoint(folder: Path, decision: str = "eviction", **more) -> Path:
    """A random but valid checkpoint."""
    layers, mean, std = network(len(LEARNED_FEATURES[decision]))
    others = {s: spec for s, spec in OTHERS.items() if s != decision}
    kwargs = {"card": "# A test policy", "meta": {"seed": 0}, "companions": others} | more
    return save_checkpoint(folder, decision, layers, mean, std, **kwargs)
