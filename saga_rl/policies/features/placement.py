"""Placement: the row of one worker, for one request."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies.features.columns import number
from saga_rl.policies.state import chains as ch


class PlacementColumns(NamedTuple):
    """Where each column is in a row."""

    load: int  # max(running-slot share, pinned KV share) + queued prefill seconds / 1 s, SAGA section 6
    in_flight: int  # requests sent there and not finished
    slots: int  # in_flight / running slots
    pinned: int  # KV tokens of its requests in flight / its pool, at most 1
    queued_s: int  # prefill seconds of what is queued there
    home: int  # 1: the chain's last step ran there
    hit: int  # believed cached share of the prompt: context / prompt at home, 0 elsewhere
    prompt_log: int  # log1p prompt tokens
    new: int  # 1: first request of its chain
    idle_log: int  # log1p seconds since the chain's last step
    sessions: int  # chains whose home it is / running slots
    turn: int  # placements since one went here; before the first one, more than any
    uncached_s: int  # prefill seconds of what the request has to compute there
    mean_in_flight: int  # over all workers
    draw: int  # the worker's place in an order drawn for this request, 0 first; 0 unless `Policy.draws`
    ring: int  # the same, drawn for its chain: what a consistent hash gives


PL, PLACEMENT = number(PlacementColumns)
LEARNED_PLACEMENT = PLACEMENT[:PL.turn]
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
    out[PL.load] = load(slots, pinned, queued_s)
    out[PL.in_flight] = in_flight
    out[PL.slots] = slots
    out[PL.pinned] = pinned
    out[PL.queued_s] = queued_s
    out[PL.home] = 1.0 if home else 0.0
    out[PL.hit] = min(row[ch.CONTEXT] / max(prompt_tokens, 1.0), 1.0) if home else 0.0
    out[PL.prompt_log] = np.log1p(prompt_tokens)
    out[PL.new] = 1.0 if new else 0.0
    out[PL.idle_log] = 0.0 if new else np.log1p(max(now - row[ch.LAST], 0.0))
    out[PL.sessions] = homed / max_seqs
    out[PL.turn] = turn
    out[PL.uncached_s] = uncached / prefill_tokens_per_s
    out[PL.mean_in_flight] = mean_in_flight
    out[PL.draw] = out[PL.ring] = 0.0
