"""AEG inference as the policies have it: predict, then observe, over a stream of requests in order of time.

The pass drives the functions of `policies.state.chains`, which update one worker's `policies.state.tables`, as the
simulator and the vLLM adapter do: `describe`, `arrive`, `schedule`, `finish`, `expire`. When a step's answer is
complete, and before its statistics change, what the tables say of its future is noted. Nothing of it depends on what
comes later (the actual gap enters only where it is looked up in a distribution that was fixed before: PIT).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.inference.stream import Stream
from saga_rl.njit import njit
from saga_rl.policies.parameters import EXPIRY_S
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import tables as tb

(
    P_END,      # chance that this step is its chain's last
    NEXT,       # the tool that the chain's next step is expected to call: code, -1 = none
    CONFIDENCE,  # share of the transitions seen from here that it has; 0 = none was seen, NEXT means nothing
    MAJORITY,   # the tool that most later steps of chains of its agent type called so far, -1 = none
    SEEN,       # of how many such steps that is known
    P50, P90, P95,   # seconds: predicted quantiles of the gap to the next request
    PIT_LOW, PIT_HIGH,  # predicted share of gaps in bins below that of the actual gap, and up to it
    OBS,        # tokens that the tool's answer is expected to add
    OBS_ALL,    # the same without regard to the tool
    DONE,       # chains of its agent type that are known or presumed to have ended
    RETURNS,    # gaps seen after its tool
) = range(14)
COLUMNS = RETURNS + 1
QUANTILES = np.array([0.50, 0.90, 0.95])
_ARRIVE, _FINISH, _EXPIRE = 0, 1, 2


def predictions(s: Stream, *, hints: bool, expiry_s: float = EXPIRY_S,
                tables: tb.Tables | None = None) -> tuple[NDArray[np.float64], tb.Tables]:
    """(n, COLUMNS) what was predicted when each step had ended, and the tables at the end of the stream.

    hints: the client says which step is its chain's last; else an end is only presumed, after `expiry_s` of silence
    (and taken back when the chain returns), and not where most ends were announced so far. `tables`: of one worker,
    updated in place; fresh ones unless given.
    """
    if tables is None:
        tables = tb.make_tables(1, len(s.tools), len(s.types))
    kind, step = _events(s, expiry_s)
    out = np.full((len(s.chain), COLUMNS), np.nan)
    called = np.zeros((len(s.types), len(s.tools) + 1))
    _play(kind, step, s.chain, s.start_s, s.end_s, s.prompt, s.output, s.tool, s.after, s.gap_s, s.session, s.tenant,
          s.agent_type, ch.make_chains(len(s.session)), tables, called, hints, out)
    return out, tables


def _events(s: Stream, expiry_s: float) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Kind and step of each event in order of time; a chain's own events in the order of its life."""
    n = len(s.chain)
    place = np.zeros(n, np.int64)  # of a step in its chain
    order = np.lexsort((np.arange(n), s.chain))
    begin = np.concatenate([[True], np.diff(s.chain[order]) != 0]) if n else np.zeros(0, bool)
    place[order] = np.arange(n) - np.maximum.accumulate(np.where(begin, np.arange(n), 0))
    late = np.flatnonzero(s.gap_s > expiry_s)
    step = np.concatenate([np.arange(n), np.arange(n), late])
    kind = np.repeat(np.array([_ARRIVE, _FINISH, _EXPIRE], np.int8), [n, n, len(late)])
    time = np.concatenate([s.start_s, s.end_s, s.end_s[late] + expiry_s])
    by_time = np.lexsort((step, 3 * place[step] + kind, time))
    return kind[by_time], step[by_time]


@njit(cache=True)
def _play(kinds, steps, chain, start, end, prompt, output, tool, after, gap, session, tenant, agent_type, chains,
          tables, called, hints, out):
    for e in range(len(kinds)):
        i = steps[e]
        c = chain[i]
        if kinds[e] == _ARRIVE:
            if chains[c, ch.STEPS] == 0:
                ch.describe(chains, c, c, session[c], start[i], tenant[c], agent_type[c], np.nan)
            ch.arrive(chains, tables, 0, c, start[i], prompt[i])
            ch.schedule(chains, c, start[i])
        elif kinds[e] == _FINISH:
            mine = called[agent_type[c]]
            if chains[c, ch.STEPS] > 0:
                mine[tool[i] + 1] += 1.0
            _predict(tables, agent_type[c], tool[i], gap[i], mine, out[i])
            ch.finish(chains, tables, 0, c, end[i], prompt[i], output[i], tool[i], hints and after[i] < 0)
        elif not tb.announces(tables, 0, agent_type[c]):
            ch.expire(chains, tables, 0, c)


@njit(cache=True)
def _predict(tables, agent_type, tool, gap, called, out):
    row, pooled = tool + 1, tables.hist.shape[1] - 1
    out[P_END] = tb.end_prior(tables, 0, agent_type, tool)
    out[NEXT], out[CONFIDENCE] = tb.next_tool(tables, 0, agent_type, tool)
    out[MAJORITY] = np.argmax(called) - 1
    out[SEEN] = called.sum()
    for k in range(len(QUANTILES)):
        out[P50 + k] = quantile(tables, tool, QUANTILES[k])
    if gap < np.inf:
        b = tb.latency_bin(gap)
        out[PIT_LOW] = 1.0 - tb.survival(tables, 0, tool, tb.bin_seconds(b))
        out[PIT_HIGH] = 1.0 - tb.survival(tables, 0, tool, tb.bin_seconds(b + 1)) if b + 1 < tb.BINS else 1.0
    out[OBS] = tables.obs[0, row]
    out[OBS_ALL] = tables.obs[0, pooled]
    out[DONE] = tables.types[0, agent_type, tb.DONE]
    out[RETURNS] = tables.returns[0, row]


@njit(cache=True)
def quantile(tables, tool, q):
    """Seconds: the middle of the last bin that at least 1 - q of the tool's gaps reach, by `tables.survival`."""
    for b in range(tb.BINS - 1, 0, -1):
        if tb.survival(tables, 0, tool, tb.bin_seconds(b)) >= 1.0 - q:
            return tb.bin_seconds(b)
    return tb.bin_seconds(0)
