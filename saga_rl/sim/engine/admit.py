"""Blocks for a request: the admission row of the head of a queue, and room made by evicting."""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies import features as ft
from saga_rl.policies.state import chains as ch
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.demotion import demote, note_idle
from saga_rl.sim.engine.live_sessions import expire_silent
from saga_rl.sim.engine.worker import blocks_for, scheduled_tokens


@njit(cache=True)
def free_blocks_for(world, w, need, now, whole, tenant):
    """Evict until `need` blocks are free on worker w for a request of `tenant` (-1: of several, where there are no
    floors); the caller made sure that it can be done.

    Candidates are ranked once a scheduling step, and anew where something was released within it. A policy with memory,
    which is told of every victim, is asked at each allocation."""
    if world.pool.n[w, kv.FREE] >= need:
        return
    if world.limits[st.TIER] == 1 and world.limits[st.LAZY] == 1:
        n = note_idle(world, w)
        _evict(world, w, need, now, whole, tenant)
        demote(world, w, n)
        return
    _evict(world, w, need, now, whole, tenant)


@njit(cache=True)
def _evict(world, w, need, now, whole, tenant):
    """Evict as `free_blocks_for` says."""
    run, ranked = world.run, world.work.ranked
    if world.limits[st.OLDEST_FIRST] == 1 and world.limits[st.FLOORED] == 0:
        ev.make_room_oldest_first(world.tree, world.pool, w, need)
        return
    if world.limits[st.FLOORED] == 1:
        held_blocks(world, w)
    if world.g[w, ft.G_MEMORY] > 0 or ranked[w, 0] != now or ranked[w, 1] != world.pool.n[w, kv.SEQ]:
        ranked[w, 0], ranked[w, 1] = now, world.pool.n[w, kv.SEQ]
        for k in range(run.w[w, st.N_WAITING]):
            world.chains[world.tree.chain[run.queue[w, k]], ch.QPOS] = k
        ev.rank(world.pool, world.chains, world.tables, world.g, w, now, world.work.next_use, world.evict_score,
                world.evict_params, world.evict_scratch, world.work.evict, world.work.scores)
    if world.limits[st.FLOORED] == 1:
        run.count[st.FLOOR_BREAKS] += ev.make_room_floored(
            world.tree, world.pool, world.chains, world.tables, world.g, w, need, now, world.work.next_use,
            world.evict_score, world.evict_params, world.evict_scratch, world.work.evict, world.work.scores, run.floors,
            run.held, tenant)
        return
    ev.make_room(world.tree, world.pool, world.chains, world.tables, world.g, w, need, now, world.work.next_use,
                 world.evict_score, world.evict_params, world.evict_scratch, whole, world.work.evict, world.work.scores)


@njit(cache=True)
def held_blocks(world, w):
    """Fill `run.held`: each tenant's blocks on the worker, held by its requests or left idle by its chains."""
    run, pool = world.run, world.pool
    run.held[:] = 0.0
    for k in range(pool.n[w, kv.IDLE]):
        r = kv.row(pool, w, pool.idle[w, k])
        run.held[int(world.chains[pool.owner[r], ch.TENANT])] += pool.res[r]
    for k in range(run.w[w, st.N_RUNNING]):
        step = run.running[w, k]
        tokens = run.i[step, st.COMPUTED] + run.i[step, st.SCHEDULED]
        run.held[world.plan.tenant[world.plan.session[step]]] += blocks_for(tokens, world.limits[st.BLOCK])


@njit(cache=True)
def takeable(world, w, tenant):
    """Idle blocks on the worker that may be evicted for a request of `tenant` without touching another's floor."""
    pool = world.pool
    total = kv.evictable(pool, w)
    if world.limits[st.FLOORED] == 0:
        return total
    run = world.run
    held_blocks(world, w)
    idle = np.zeros(len(run.floors))
    for k in range(pool.n[w, kv.IDLE]):
        r = kv.row(pool, w, pool.idle[w, k])
        idle[int(world.chains[pool.owner[r], ch.TENANT])] += pool.res[r]
    for t in range(len(run.floors)):
        if t != tenant:
            spare = max(np.ceil(run.held[t] - run.floors[t]), 0.0)
            total -= int(max(idle[t] - spare, 0.0))
    return total


@njit(cache=True)
def blocks_wanted(world, cached, known, budget):
    """Blocks beyond its `cached` ones that must be there to let a request of `known` tokens in."""
    block = world.limits[st.BLOCK]
    if world.limits[st.WHOLE_PROMPT] == 1:
        return blocks_for(known, block) - cached
    return blocks_for(cached * block + scheduled_tokens(known, cached * block, budget), block) - cached


@njit(cache=True)
def lets_in(world, row):
    """Say whether the admission policy lets in the request that this row describes."""
    return world.admit_score(row, world.admit_params, world.admit_scratch) > 0.0


@njit(cache=True)
def fill_admission(world, w, step, cached, known, now):
    """The admission row of the request at the head of worker w's queue. cached: its resident prefix, blocks."""
    run, pool, chains, tables = world.run, world.pool, world.chains, world.tables
    block = world.limits[st.BLOCK]
    c = world.tree.chain[step]
    mine = world.chains[c]
    e = ft.expected_output(tables, w, int(mine[ch.TYPE]), 0.0)
    need = blocks_for(known + int(max(e - run.i[step, st.GENERATED], 1.0)), block) - cached
    growth, session_growth = 0.0, 0.0
    for k in range(run.w[w, st.N_RUNNING]):
        other = run.running[w, k]
        rc = world.tree.chain[other]
        i = run.i[other]
        more = max(ft.expected_output(tables, w, int(chains[rc, ch.TYPE]), 0.0) - i[st.GENERATED], 1.0)
        then = world.plan.prompt[other] + i[st.GENERATED] + int(more)
        growth += blocks_for(then, block) - blocks_for(i[st.COMPUTED], block)
        session_growth += ft.expected_growth(chains, tables, w, rc) / block
    older, live = 0.0, float(pool.n[w, kv.PINNED] + pool.n[w, kv.PRIVATE])
    expected_older, informed = world.work.older, world.g[w, ft.G_ADMIT_INFORMED] > 0
    expected_older[:] = 0.0
    clairvoyant, returns = world.limits[st.CLAIRVOYANT] == 1, 0.0
    tick = world.work.stamp[-1] + 1
    world.work.stamp[-1] = tick
    for k in range(pool.n[w, kv.IDLE]):
        r = kv.row(pool, w, pool.idle[w, k])
        o = pool.owner[r]
        row = chains[o]
        if row[ch.ENDED] > 0 or (not ch.waits(chains, o, w) and now - pool.last[r] > world.real[st.EXPIRY]):
            continue
        useful = pool.res[r] * ft.useful_share(row, pool.owned[kv.owned_row(pool, w, o)], block)
        live += useful
        if world.work.stamp[o] != tick:
            world.work.stamp[o] = tick
            session_growth += ft.expected_growth(chains, tables, w, o) / block
        older_session = row[ch.SESSION_S] < mine[ch.SESSION_S] or (
            row[ch.SESSION_S] == mine[ch.SESSION_S] and row[ch.SESSION] < mine[ch.SESSION])
        if older_session:
            older += useful
            if informed:
                ft.add_expected_older(chains, tables, w, o, now, pool.last[r], useful, expected_older)
            if clairvoyant and world.work.next_use[pool.idle[w, k]] <= now + ft.LATER_S:
                returns += pool.res[r]
    expire_silent(world, now)
    lost = ft.lost_blocks(chains, c, float(known), float(cached), block)
    ft.admission_row(chains, tables, world.g, w, c, now, run.f[step, st.READY], float(need),
                     float(pool.n[w, kv.FREE]), float(kv.evictable(pool, w)), older, growth,
                     float(pool.n[w, kv.POOL]), float(pool.n[w, kv.PINNED] + pool.n[w, kv.PRIVATE]), live,
                     session_growth, float(run.w[w, st.N_RUNNING]), float(run.w[w, st.ACTIVE]), expected_older, lost,
                     returns if clairvoyant else np.nan, world.work.admit)
