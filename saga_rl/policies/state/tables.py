"""What a worker has learned from the requests it served: per tool (latency, observation, end) and per agent type.

Online and windowed: the simulator and the vLLM adapter update the same arrays through the same functions.
Tool latencies are kept as a log-spaced histogram over the last `WINDOW` returns of each tool (SAGA section 4:
empirical percentile over a sliding window of 256).

Row of a tool code t is t + 1 (row 0: the step called no tool); the last row pools all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit

WINDOW = 256
BINS = 96
MIN_S, MAX_S = 1e-3, 1e4
_LOG_MIN = math.log(MIN_S)
_WIDTH = (math.log(MAX_S) - _LOG_MIN) / BINS
_SECONDS = np.array([math.exp(_LOG_MIN + (b + 0.5) * _WIDTH) for b in range(BINS)])
COLD = 20
"""Fewer returns than this: use the pooled row; fewer there too: the cold-start constants below."""
COLD_TTL_S = 10.0
MAX_TTL_S = 300.0
COLD_END = 0.03
"""Chance that a step is its session's last, before any end was seen (about 1 / 37, the SWE-bench mean)."""
COLD_TASKS = 30
"""An agent type's own statistics count from so many ended chains on (SAGA section 2, cold start)."""
EMA = 0.05
ANNOUNCED_EMA = 0.1
PATIENCE = 12.0
"""Where clients announce ends (`announces`), silence counts as an end only after so many times the usual expiry."""

# columns of Tables.types
STEPS, OUT, STEP_S, GROW, DONE, ANNOUNCED = range(6)
_COLD_TYPE = np.array([20.0, 256.0, 5.0, 2000.0, 0.0, 0.0])


class Tables(NamedTuple):
    """Arrays, leading dimension: worker. Built by `make_tables`."""

    hist: NDArray[np.float64]
    """(W, rows, BINS) returns in the window by latency."""
    above: NDArray[np.float64]
    """(W, rows, BINS + 1) suffix sums of `hist`."""
    seconds_above: NDArray[np.float64]
    """(W, rows, BINS + 1) suffix sums of latency."""
    ring: NDArray[np.int64]
    """(W, rows, WINDOW) bins of the window's returns."""
    returns: NDArray[np.int64]
    ends: NDArray[np.int64]
    obs: NDArray[np.float64]
    """(W, rows) EMA of the tokens that the tool's answer added to the context."""
    p95: NDArray[np.float64]
    """(W, rows) seconds."""
    types: NDArray[np.float64]
    """(W, agent types, 6): EMA of steps a session, output tokens, service seconds and growth a step; ended chains; EMA
    of the share of ends that a client announced."""
    calls: NDArray[np.float64]
    """(W, agent types, tools + 1, tools + 3) the inferred graph (SAGA section 2), a row for each tool that a step
    called: how often the next step called which (tools + 1 columns); chains that ended there, and ended or went on."""


def make_tables(workers: int, n_tools: int, n_types: int) -> Tables:
    rows = n_tools + 2
    types = np.tile(_COLD_TYPE, (workers, max(n_types, 1), 1))
    return Tables(
        np.zeros((workers, rows, BINS)), np.zeros((workers, rows, BINS + 1)), np.zeros((workers, rows, BINS + 1)),
        np.zeros((workers, rows, WINDOW), np.int64), np.zeros((workers, rows), np.int64),
        np.zeros((workers, rows), np.int64), np.full((workers, rows), 500.0), np.full((workers, rows), COLD_TTL_S),
        np.ascontiguousarray(types), np.zeros((workers, max(n_types, 1), n_tools + 1, n_tools + 3)),
    )


@njit(cache=True)
def latency_bin(seconds):
    """The bin that holds `seconds`; below and above the range count as the first and the last."""
    if seconds <= MIN_S:
        return 0
    if not seconds < MAX_S:  # infinity has no integer
        return BINS - 1
    return min(max(int((np.log(seconds) - _LOG_MIN) / _WIDTH), 0), BINS - 1)


@njit(cache=True)
def bin_seconds(b):
    """Geometric middle of bin b, seconds."""
    return _SECONDS[b]


@njit(cache=True)
def _observe_row(t, w, row, b, obs_tokens):
    slot = t.returns[w, row] % WINDOW
    if t.returns[w, row] >= WINDOW:
        t.hist[w, row, t.ring[w, row, slot]] -= 1.0
    t.ring[w, row, slot] = b
    t.hist[w, row, b] += 1.0
    t.returns[w, row] += 1
    t.obs[w, row] += EMA * (obs_tokens - t.obs[w, row])
    n, seconds = 0.0, 0.0
    for i in range(BINS - 1, -1, -1):
        n += t.hist[w, row, i]
        seconds += t.hist[w, row, i] * bin_seconds(i)
        t.above[w, row, i] = n
        t.seconds_above[w, row, i] = seconds
    for i in range(BINS - 1, -1, -1):
        if t.above[w, row, i] >= 0.05 * n:
            t.p95[w, row] = bin_seconds(i)
            break


@njit(cache=True)
def observe_return(t, w, agent_type, tool, seconds, obs_tokens):
    """A chain came back `seconds` after its step that called `tool` (code, -1 = none) finished."""
    b = latency_bin(seconds)
    _observe_row(t, w, tool + 1, b, obs_tokens)
    _observe_row(t, w, t.hist.shape[1] - 1, b, obs_tokens)
    t.calls[w, agent_type, tool + 1, -1] += 1.0


@njit(cache=True)
def observe_call(t, w, agent_type, before, tool):
    """A step called `tool`, the one before it in its chain `before`."""
    t.calls[w, agent_type, before + 1, tool + 1] += 1.0


@njit(cache=True)
def observe_end(t, w, tool, agent_type, steps, announced):
    """A chain ended after a step that called `tool`, `steps` steps in all. announced: its client said so."""
    t.ends[w, tool + 1] += 1
    t.ends[w, t.hist.shape[1] - 1] += 1
    t.calls[w, agent_type, tool + 1, -2] += 1.0
    t.calls[w, agent_type, tool + 1, -1] += 1.0
    a = t.types[w, agent_type]
    a[DONE] += 1.0
    a[STEPS] += (0.2 if a[DONE] < 5 else EMA) * (steps - a[STEPS])
    a[ANNOUNCED] += ANNOUNCED_EMA * ((1.0 if announced else 0.0) - a[ANNOUNCED])


@njit(cache=True)
def retract_end(t, w, agent_type, tool):
    """A chain that was presumed to have ended came back. The presumption may stand in another worker's tables: counts
    never go below zero."""
    row, pooled = tool + 1, t.hist.shape[1] - 1
    t.ends[w, row] = max(t.ends[w, row] - 1, 0)
    t.ends[w, pooled] = max(t.ends[w, pooled] - 1, 0)
    mine = t.calls[w, agent_type, row]
    if mine[-2] > 0:
        mine[-2] -= 1.0
        mine[-1] -= 1.0
    a = t.types[w, agent_type]
    a[ANNOUNCED] = min(a[ANNOUNCED] / (1.0 - ANNOUNCED_EMA), 1.0)  # as it was, but for what was observed since


@njit(cache=True)
def announces(t, w, agent_type):
    """Whether the clients of this agent type announce most ends: then a silent chain will come back."""
    return t.types[w, agent_type, ANNOUNCED] > 0.5


@njit(cache=True)
def observe_step(t, w, agent_type, out_tokens, service_s, growth_tokens):
    """A step of a chain of `agent_type` finished."""
    a = t.types[w, agent_type]
    a[OUT] += EMA * (out_tokens - a[OUT])
    a[STEP_S] += EMA * (service_s - a[STEP_S])
    a[GROW] += EMA * (growth_tokens - a[GROW])


@njit(cache=True)
def _warm_row(t, w, tool):
    row = tool + 1
    if t.returns[w, row] >= COLD:
        return row
    pooled = t.hist.shape[1] - 1
    return pooled if t.returns[w, pooled] >= COLD else -1


@njit(cache=True)
def ttl(t, w, tool, pressure):
    """Seconds that an idle chain is worth keeping: P95 x (1 - 0.5 m), at most 300; m = clip((used - .7) / .2, 0, 1)."""
    row = _warm_row(t, w, tool)
    base = t.p95[w, row] if row >= 0 else COLD_TTL_S
    return min(base * (1.0 - 0.5 * pressure), MAX_TTL_S)


@njit(cache=True)
def survival(t, w, tool, idle_s):
    """Share of the tool's returns that took longer than `idle_s`, floored so that no tail is ever impossible."""
    row = _warm_row(t, w, tool)
    if row < 0:
        return 1.0 / (1.0 + idle_s / COLD_TTL_S)
    n = t.above[w, row, 0]
    return (t.above[w, row, latency_bin(idle_s)] + 0.5) / (n + 1.0)


@njit(cache=True)
def residual_s(t, w, tool, idle_s):
    """Expected seconds until the return of a chain that has been idle for `idle_s` and does return."""
    row = _warm_row(t, w, tool)
    if row < 0:
        return COLD_TTL_S + idle_s
    b = latency_bin(idle_s)
    n = t.above[w, row, b]
    if n <= 0.0:
        return idle_s + 1.0
    return max(t.seconds_above[w, row, b] / n - idle_s, bin_seconds(b) - idle_s, 0.05)


@njit(cache=True)
def end_prior(t, w, agent_type, tool):
    """Chance that a step which called `tool` was its chain's last: the tool's rate, smoothed towards the pooled one;
    for an agent type that is warm (`COLD_TASKS`) its own rate, smoothed towards the tool's."""
    pooled = t.hist.shape[1] - 1
    base = (t.ends[w, pooled] + 10.0 * COLD_END) / (t.ends[w, pooled] + t.returns[w, pooled] + 10.0)
    row = tool + 1
    rate = (t.ends[w, row] + 10.0 * base) / (t.ends[w, row] + t.returns[w, row] + 10.0)
    if t.types[w, agent_type, DONE] < COLD_TASKS:
        return rate
    mine = t.calls[w, agent_type, row]
    return (mine[-2] + 10.0 * rate) / (mine[-1] + 10.0)


@njit(cache=True)
def unsaid_prior(t, w, agent_type, tool):
    """Chance that a step which called `tool` was its chain's last and nobody said so."""
    return end_prior(t, w, agent_type, tool) * (1.0 - t.types[w, agent_type, ANNOUNCED])


@njit(cache=True)
def next_tool(t, w, agent_type, tool):
    """(code, confidence): the tool that the step after one that called `tool` most likely calls, by the transitions of
    its agent type, and its share of all that were seen from there; (-1, 0.0) if none was."""
    mine = t.calls[w, agent_type, tool + 1]
    best, total = 0, 0.0
    for u in range(len(mine) - 2):
        total += mine[u]
        if mine[u] > mine[best]:
            best = u
    return (best - 1, mine[best] / total) if total > 0 else (-1, 0.0)
