"""Placement: the row of one worker, for one request."""

from __future__ import annotations

import numpy as np
from numba import njit

from saga_rl.policies.state import chains as ch

PLACEMENT = (
    "load",           # max(running-slot share, pinned KV share) + queued prefill seconds / 1 s, SAGA section 6
    "in_flight",      # requests sent there and not finished
    "slots",          # in_flight / running slots
    "pinned",         # KV tokens of its requests in flight / its pool, at most 1
    "queued_s",       # prefill seconds of what is queued there
    "home",           # 1: the chain's last step ran there
    "hit",            # believed cached share of the prompt: context / prompt at home, 0 elsewhere
    "prompt_log",     # log1p prompt tokens
    "new",            # 1: first request of its chain
    "idle_log",       # log1p seconds since the chain's last step
    "sessions",       # chains whose home it is / running slots
    "turn",           # placements since one went here; before the first one, more than any
    "uncached_s",     # prefill seconds of what the request has to compute there
    "mean_in_flight", # over all workers
    "draw",           # the worker's place in an order drawn for this request, 0 first; 0 unless `Policy.draws`
    "ring",           # the same, drawn for its chain: what a consistent hash gives
)
(P_LOAD, P_IN_FLIGHT, P_SLOTS, P_PINNED, P_QUEUED, P_HOME, P_HIT, P_PROMPT, P_NEW, P_IDLE, P_SESSIONS, P_TURN,
 P_UNCACHED, P_MEAN, P_DRAW, P_RING) = range(16)
LEARNED_PLACEMENT = PLACEMENT[:P_TURN]
"""What a learned placement policy may read: bounded, and the same whatever the size of the cluster."""


@njit(cache=True)
def draw(a, b, c):
    """A number in [0, 1) that depends on three integers only (a hash after SplitMix64)."""
    z = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(c)
    for _ in range(2):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def draw_places(key, request, column, rows):
    """Fill `column` of every worker's placement row with the worker's place in an order of the workers that depends on
    `key` and `request` alone. Taking workers away leaves the order of the others as it is (rendezvous hashing)."""
    n = len(rows)
    drawn = np.empty(n)
    for w in range(n):
        drawn[w] = draw(key, request, w)
    order = np.argsort(drawn)
    for place in range(n):
        rows[order[place], column] = place


@njit(cache=True)
def load(slots, pinned, queued_s):
    """SAGA section 6: the larger share in use, plus the seconds of prefill that wait."""
    return max(slots, pinned) + queued_s


@njit(cache=True)
def uncached_tokens(chains, c, prompt_tokens, home):
    """Prompt tokens that a worker will have to compute, as a router believes: all, or at home what is new."""
    return max(prompt_tokens - chains[c, ch.CONTEXT], 0.0) if home else prompt_tokens


@njit(cache=True)
def placement_row(chains, c, now, prompt_tokens, home, in_flight, max_seqs, flight_tokens, kv_tokens, queued_tokens,
                  prefill_tokens_per_s, homed, turn, mean_in_flight, out):
    """Fill `out` (len(PLACEMENT),) for one worker. Everything is known to a router without asking the worker: what it
    sent there (`in_flight`, `flight_tokens`, and `queued_tokens` = `uncached_tokens` of the requests without a first
    token), how many placements ago (`turn`), and where chains live (`home`, `homed`). The columns "draw" and "ring" are
    left 0, see `draw_places`."""
    row = chains[c]
    new = row[ch.STEPS] == 0
    uncached = uncached_tokens(chains, c, prompt_tokens, home)
    slots = in_flight / max_seqs
    pinned = min(flight_tokens / kv_tokens, 1.0)
    queued_s = queued_tokens / prefill_tokens_per_s
    out[P_LOAD] = load(slots, pinned, queued_s)
    out[P_IN_FLIGHT] = in_flight
    out[P_SLOTS] = slots
    out[P_PINNED] = pinned
    out[P_QUEUED] = queued_s
    out[P_HOME] = 1.0 if home else 0.0
    out[P_HIT] = min(row[ch.CONTEXT] / max(prompt_tokens, 1.0), 1.0) if home else 0.0
    out[P_PROMPT] = np.log1p(prompt_tokens)
    out[P_NEW] = 1.0 if new else 0.0
    out[P_IDLE] = 0.0 if new else np.log1p(max(now - row[ch.LAST], 0.0))
    out[P_SESSIONS] = homed / max_seqs
    out[P_TURN] = turn
    out[P_UNCACHED] = uncached / prefill_tokens_per_s
    out[P_MEAN] = mean_in_flight
    out[P_DRAW] = out[P_RING] = 0.0
