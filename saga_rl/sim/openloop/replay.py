"""Open-loop replay: an eviction policy plays a fixed reference string, and what is computed again because of it counts.

The string is what one worker served (`saga_rl.sim.reference`), settled into a script that is the same for every policy
(`saga_rl.sim.openloop.script`). A request is looked up, pinned and given its blocks at START; what it generated gets
its blocks at END, when everything becomes idle. Policies see the same features at the same moments as in the closed
loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.base import Policy
from saga_rl.policies.features import BEGIN, EVICTION, G_MEMORY, RELEASE, make_g
from saga_rl.policies.parameters import EXPIRY_S
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state.tables import PATIENCE, Tables, make_tables
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cache.pool import Pool, Tree
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.compiled.refs import unowned
from saga_rl.sim.openloop import script as sc
from saga_rl.sim.openloop.script import Prepared, Script, join, learn, prepare
from saga_rl.sim.reference import READY, START, Reference

# columns of Work.run
HELD, HAVE, READY_AT, QUEUE, RUNNING = range(5)
# Work.tally
RECOMPUTED, PREFILLED, HIT, N_QUEUE, N_RUNNING, N_IDLE, FIRST_IDLE, FIRST_PATIENT, FOUND = range(9)


class Work(NamedTuple):
    """What changes while a script is played, besides pool, chains and tables."""

    run: NDArray[np.int64]
    """(steps, 5). HELD: path index from `pin`; HAVE: tokens; READY_AT: event. Two lists: the first tally[N_QUEUE] of
    column QUEUE are the waiting steps in order of READY, the first tally[N_RUNNING] of RUNNING the running ones."""
    idle_chain: NDArray[np.int32]
    """By finish: the chain; from tally[FIRST_IDLE] on they have not been looked at for expiry, and from
    tally[FIRST_PATIENT] on not for that of clients which announce ends (`chains.patience`)."""
    idle_since: NDArray[np.float64]
    begin: NDArray[np.float64]
    """(sessions,) first request, s; NaN = not yet."""
    tally: NDArray[np.int64]
    future: NDArray[np.float64]
    """(segments,) true next use."""


class Cursor(NamedTuple):
    """One replay in progress."""

    script: Script
    tree: Tree
    pool: Pool
    chains: NDArray[np.float64]
    tables: Tables
    g: NDArray[np.float64]
    work: Work
    next_use: NDArray[np.float64]
    """What the ORACLE feature shows: `work.future` itself for an oracle, NaN for everyone else."""


@dataclass(frozen=True)
class ReplayResult:
    """Tokens, summed over all runs (a preempted request runs again, and is looked up again)."""

    recomputed_tokens: int
    """Computed although an infinite cache would have held them."""
    prefilled_tokens: int
    """Computed before the next output token could be; first-time tokens are `prefilled - recomputed`."""
    hit_tokens: int
    evicted_blocks: int


def replay(reference: Reference, eviction: Policy, kv_tokens: int, *, end_hint: bool = True, expiry_s: float = EXPIRY_S,
           debug: bool = False) -> ReplayResult:
    """Cursor `reference` on a pool of `kv_tokens` tokens under `eviction`.

    end_hint: clients say which step is their chain's last. expiry_s: idle seconds after which a chain is presumed
    ended. debug: check invariants I1, I4 and I5 after every event (slow); `AssertionError` names the event. Raises
    `UserError` if the pool cannot hold what the string runs at once.
    """
    return play(prepare(reference, kv_tokens), eviction, end_hint=end_hint, expiry_s=expiry_s, debug=debug)


def play(prepared: Prepared, eviction: Policy, *, end_hint: bool = True, expiry_s: float = EXPIRY_S,
         debug: bool = False) -> ReplayResult:
    """`replay` of a reference that was prepared once for several policies."""
    cursor = make_cursor(prepared, eviction)
    n = len(prepared.script.time)
    fixed = (cursor, eviction.score, eviction.params, np.zeros(max(eviction.scratch, 1)), bool(eviction.whole_chain),
             bool(eviction.drop_expired), bool(end_hint), float(expiry_s), np.zeros(len(EVICTION)),
             np.zeros(len(prepared.tree.parent)))
    run = compiled(_play, (*fixed, 0, n), (1,))
    if not debug:
        run(*fixed, 0, n)
        return result_of(cursor)
    for k in range(n):
        run(*fixed, k, k + 1)
        broken = check(cursor.tree, cursor.pool, cursor.work.run, cursor.work.tally, cursor.script.block)
        assert not broken, f"invariant I{broken} does not hold after event {k} under {eviction.name}"
    return result_of(cursor)


def make_cursor(prepared: Prepared, policy: Policy) -> Cursor:
    n_segments = len(prepared.tree.parent)
    finishes = len(prepared.script.time)
    future = np.full(n_segments, np.inf)
    work = Work(np.zeros((len(prepared.script.info), 5), np.int64), np.zeros(finishes, np.int32), np.zeros(finishes),
                np.full(len(prepared.script.who), np.nan), np.zeros(9, np.int64), future)
    chains = ch.make_chains(prepared.n_chains)
    chains[:, ch.QUEUED] = np.nan
    script = _in_seconds(prepared.script) if policy.oracle_gaps else prepared.script
    return Cursor(script, prepared.tree, prepared.pool(), chains,
                make_tables(1, prepared.n_tools, prepared.n_types),
                make_g(1, prepared.script.block, prepared.pool_blocks, policy), work,
                future if policy.oracle else np.full(n_segments, np.nan))


def _in_seconds(script: Script) -> Script:
    """The script whose next uses are seconds from the release on which they follow, not events."""
    first = np.append(script.event[:, sc.AFTER], len(script.after))
    released = np.repeat(script.time, np.diff(first))
    comes = np.isfinite(script.after)
    after = np.full(len(script.after), np.inf)
    after[comes] = script.time[script.after[comes].astype(np.int64)] - released[comes]
    return script._replace(after=after)


def result_of(cursor: Cursor) -> ReplayResult:
    tally = cursor.work.tally
    return ReplayResult(int(tally[RECOMPUTED]), int(tally[PREFILLED]), int(tally[HIT]),
                        int(cursor.pool.n[0, kv.EVICTED]))


def _play(owned, score, params, scratch, whole, literal, end_hint, expiry_s, row, scores, first, stop):
    """Events first..stop - 1 in turn."""
    cursor = unowned(owned)
    for k in range(first, stop):
        need = open_event(cursor, k, literal, expiry_s, row)
        if need > 0:
            if cursor.pool.n[0, kv.FREE] < need:
                ev.rank(cursor.pool, cursor.chains, cursor.tables, cursor.g, 0, cursor.script.time[k], cursor.next_use,
                        score, params, scratch, row, scores)
            ev.make_room(cursor.tree, cursor.pool, cursor.chains, cursor.tables, cursor.g, 0, need,
                         cursor.script.time[k], cursor.next_use, score, params, scratch, whole, row, scores)
        close_event(cursor, k, end_hint)
        if cursor.g[0, G_MEMORY] > 0 and cursor.script.event[k, sc.KIND] != READY:
            _notify(cursor, k, score, params, scratch, row)


@njit(cache=True)
def _notify(cursor, k, score, params, scratch, row):
    """Notify a policy with memory of the chain that began to run or let go of its blocks in event k."""
    s, p, now = cursor.script, cursor.pool, cursor.script.time[k]
    c = cursor.tree.chain[s.event[k, sc.STEP]]
    if s.event[k, sc.KIND] == START:
        event, blocks = BEGIN, float(cursor.work.tally[FOUND])
        total = float((s.event[k, sc.COMPUTED] + s.block - 1) // s.block)
    else:
        event, blocks = RELEASE, float(p.owned[kv.owned_row(p, 0, c)])
        total = blocks
    ev.notify(p, cursor.chains, cursor.tables, cursor.g, 0, c, now, event, blocks, total, 0.0, now, score, params,
            scratch, row)


@njit(cache=True)
def open_event(cursor, k, literal, expiry_s, row):
    """What event k does before blocks are allocated; returns how many must be free (0 = none needed)."""
    s, t, p, work = cursor.script, cursor.tree, cursor.pool, cursor.work
    chains, tables, tally = cursor.chains, cursor.tables, work.tally
    kind, step, now = s.event[k, sc.KIND], s.event[k, sc.STEP], s.time[k]
    c = t.chain[step]
    _expire(work, tally, FIRST_IDLE, chains, tables, now, expiry_s, expiry_s)
    _expire(work, tally, FIRST_PATIENT, chains, tables, now, expiry_s, PATIENCE * expiry_s)
    if literal:
        ev.drop_expired(t, p, chains, tables, cursor.g, 0, now, cursor.next_use, row)
    if kind == READY:
        if np.isnan(chains[c, ch.QUEUED]):
            i = s.info[step, sc.SESSION]
            if np.isnan(work.begin[i]):
                work.begin[i] = now
            ch.describe(chains, c, s.who[i, sc.FIRST], i, work.begin[i], s.who[i, sc.TENANT], s.who[i, sc.TYPE],
                        work.begin[i] + s.slack[i])
        ch.arrive(chains, tables, 0, c, now, s.info[step, sc.PROMPT])
        work.run[step, READY_AT] = k
        _enqueue(work.run, tally, chains, t.chain, step)
        return 0
    mine = work.run[step]
    if kind == START:
        _dequeue(work.run, tally, chains, t.chain, step)
        work.run[tally[N_RUNNING], RUNNING] = step
        tally[N_RUNNING] += 1
        cached = min(kv.resident_prefix(t, p, 0, step), s.event[k, sc.LIMIT])
        known = min(kv.known_prefix(t, p, step), s.event[k, sc.LIMIT])
        tally[HIT] += cached * s.block
        tally[FOUND] = cached
        tally[RECOMPUTED] += (known - cached) * s.block
        tally[PREFILLED] += s.event[k, sc.COMPUTED] - cached * s.block
        mine[HELD], mine[HAVE] = 0, 0
        ch.schedule(chains, c, now)
    mine[HELD], mine[HAVE], need = join(t, p, 0, step, mine[HELD], mine[HAVE], s.event[k, sc.HOLD], s.block)
    return need


@njit(cache=True)
def _expire(work, tally, first, chains, tables, now, expiry_s, silence_s):
    """Presume that chains unheard of for `silence_s` ended, unless more patience is due to them."""
    while tally[first] < tally[N_IDLE] and now - work.idle_since[tally[first]] > silence_s:
        quiet = work.idle_chain[tally[first]]
        if chains[quiet, ch.LAST] == work.idle_since[tally[first]] and (
                silence_s >= ch.patience(chains, tables, 0, quiet, expiry_s)):
            ch.expire(chains, tables, 0, quiet)
        tally[first] += 1


@njit(cache=True)
def close_event(cursor, k, end_hint):
    """What event k does once there is room."""
    s, t, p, work, chains = cursor.script, cursor.tree, cursor.pool, cursor.work, cursor.chains
    tally = work.tally
    kind, step, now = s.event[k, sc.KIND], s.event[k, sc.STEP], s.time[k]
    if kind == READY:
        return
    c, mine, hold = t.chain[step], work.run[step], s.event[k, sc.HOLD]
    mine[HELD], _ = kv.grow(t, p, 0, step, mine[HELD], mine[HAVE], hold, s.block)
    mine[HAVE] = hold
    learn(t, p, step, s.event[k, sc.COMPUTED] // s.block)
    if kind == START:
        return
    for m in range(tally[N_RUNNING]):
        if work.run[m, RUNNING] == step:
            tally[N_RUNNING] -= 1
            work.run[m, RUNNING] = work.run[tally[N_RUNNING], RUNNING]
            break
    kv.release(t, p, 0, step, mine[HELD], hold, 0, now, s.block)
    for at in range(t.path_off[step], t.path_off[step + 1]):
        work.future[t.path[at]] = s.after[s.event[k, sc.AFTER] + at - t.path_off[step]]
    if s.event[k, sc.FINAL] == 1:
        ch.finish(chains, cursor.tables, 0, c, now, s.info[step, sc.PROMPT], s.info[step, sc.OUTPUT],
                  s.info[step, sc.TOOL], end_hint and s.info[step, sc.LAST] == 1)
        work.idle_chain[tally[N_IDLE]] = c
        work.idle_since[tally[N_IDLE]] = now
        tally[N_IDLE] += 1
    else:
        ch.preempt(chains, c, now)
        _enqueue(work.run, tally, chains, t.chain, step)


@njit(cache=True)
def _enqueue(run, tally, chains, chain, step):
    at = tally[N_QUEUE]
    while at > 0 and run[run[at - 1, QUEUE], READY_AT] > run[step, READY_AT]:
        run[at, QUEUE] = run[at - 1, QUEUE]
        at -= 1
    run[at, QUEUE] = step
    tally[N_QUEUE] += 1
    for m in range(at, tally[N_QUEUE]):
        chains[chain[run[m, QUEUE]], ch.QPOS] = m


@njit(cache=True)
def _dequeue(run, tally, chains, chain, step):
    at = 0
    while run[at, QUEUE] != step:
        at += 1
    tally[N_QUEUE] -= 1
    for m in range(at, tally[N_QUEUE]):
        run[m, QUEUE] = run[m + 1, QUEUE]
        chains[chain[run[m, QUEUE]], ch.QPOS] = m


@njit(cache=True)
def check(t, p, run, tally, block):
    """The number of the first invariant that does not hold, 0 = all do. The counts are recomputed from the segments."""
    resident, pinned, private, idle = 0, 0, 0, 0
    for seg in range(len(t.parent)):
        res = p.res[seg]
        resident += res
        pinned += res if p.ref[seg] > 0 else 0
        listed = p.slot[seg] >= 0 and p.idle[0, p.slot[seg]] == seg
        if listed != (res > 0 and p.ref[seg] == 0) or res < 0 or res > t.blocks[seg]:
            return 1
        idle += 1 if listed else 0
        up = t.parent[seg]
        if res > 0 and up >= 0 and (p.res[up] < t.blocks[up] or p.kids[up] < 1):
            return 5
    for m in range(tally[N_RUNNING]):
        step = run[m, RUNNING]
        private += 1 if run[step, HAVE] % block else 0
        if kv.resident_prefix(t, p, 0, step) < run[step, HAVE] // block:
            return 4
        for i in range(run[step, HELD]):
            if p.ref[t.path[t.path_off[step] + i]] < 1:
                return 4
    n = p.n[0]
    if (n[kv.FREE] + n[kv.PRIVATE] + n[kv.RESIDENT] != n[kv.POOL] or n[kv.RESIDENT] != resident or n[kv.FREE] < 0
            or n[kv.PINNED] != pinned or n[kv.PRIVATE] != private or n[kv.IDLE] != idle
            or p.owned.sum() != resident - pinned):
        return 1
    return 0
