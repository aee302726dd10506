"""One worker: iteration-level continuous batching as vLLM v1 schedules it.

An iteration first serves what runs (a decode takes one token, an unfinished prefill a chunk), preempting the
request that was scheduled last when blocks run out, and then, unless it preempted, takes in waiting requests in queue
order until the token budget, the slots, the blocks or the admission policy say stop. Preemption is by recomputation.
"""

from __future__ import annotations

import numpy as np

from saga_rl.njit import njit
from saga_rl.policies import features as ft
from saga_rl.policies.state import chains as ch
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cost.iteration import seconds
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.admit import blocks_wanted, fill_admission, free_blocks_for, lets_in, takeable
from saga_rl.sim.engine.demotion import loaded
from saga_rl.sim.engine.fast_forward import catch_up_others, seen
from saga_rl.sim.engine.heap import push
from saga_rl.sim.engine.live_sessions import finished, served
from saga_rl.sim.engine.offloading import finished_with, loads, offer
from saga_rl.sim.engine.tier import find_source, plan_prefetch, store, wait_for_copy
from saga_rl.sim.engine.waiting import charge, choose, dequeue, enqueue, epoch, may_be_served
from saga_rl.sim.engine.worker import account, blocks_for, log_event, log_iteration, log_part, scheduled_tokens
from saga_rl.sim.reference import END, START


@njit(cache=True)
def drop(world, w, step, now):
    """Release what the step holds: it is done or preempted."""
    run = world.run
    i = run.i[step]
    kv.release(world.tree, world.pool, w, step, i[st.HELD], i[st.COMPUTED], i[st.COPIES], now, world.limits[st.BLOCK])
    store(world, w, step, i[st.COMPUTED], now)
    i[st.HELD] = 0
    i[st.COPIES] = 0


@njit(cache=True)
def _released(world, w, c, now):
    """Tell an eviction policy with memory that chain c let go of its blocks."""
    if world.g[w, ft.G_MEMORY] > 0:
        blocks = float(world.pool.owned[kv.owned_row(world.pool, w, c)])
        ev.notify(world.pool, world.chains, world.tables, world.g, w, c, now, ft.RELEASE, blocks, blocks, 0.0, now,
                world.evict_score, world.evict_params, world.evict_scratch, world.work.evict)


@njit(cache=True)
def _preempt(world, w, at, now):
    """The running request at place `at` loses its blocks, which stay cached, and waits again. Returns its step."""
    run = world.run
    step = run.running[w, at]
    run.w[w, st.N_RUNNING] -= 1
    for k in range(at, run.w[w, st.N_RUNNING]):
        run.running[w, k] = run.running[w, k + 1]
    catch_up_others(world, w, world.tree.chain[step], now)
    log_event(world, END, step, now, run.i[step, st.COMPUTED], 0)
    log_part(world, step, -1)
    held, computed = run.i[step, st.HELD], run.i[step, st.COMPUTED]
    drop(world, w, step, now)
    if run.i[step, st.TOKEN_COMES] == 1 and computed % world.limits[st.BLOCK] == 0 and held > 0:
        _forget_unsaid(world, w, world.tree.path[world.tree.path_off[step] + held - 1])
    run.i[step, st.COMPUTED] = 0
    run.w[w, st.STALE] += run.i[step, st.TOKEN_COMES]
    run.f[step, st.SINCE] = now
    run.i[step, st.PREEMPTIONS] += 1
    run.count[st.PREEMPTED] += 1
    ch.preempt(world.chains, world.tree.chain[step], now)
    _released(world, w, world.tree.chain[step], now)
    if world.limits[st.CLAIRVOYANT] == 1:
        foretell(world, step, now)
    enqueue(world, w, step, now)
    return step


@njit(cache=True)
def _forget_unsaid(world, w, seg):
    """The last block of a request that is preempted while a token of it comes gets no name in vLLM: nobody finds it."""
    r = kv.row(world.pool, w, seg)
    if world.pool.ref[r] == 0 and world.pool.res[r] > 0 and world.pool.kids[r] == 0:
        kv.evict_blocks(world.tree, world.pool, w, seg, 1)


@njit(cache=True)
def foretell(world, step, when):
    """What a clairvoyant policy sees of the step's context from now on: when it is next used, s."""
    tree = world.tree
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        seg = tree.path[at]
        # of a shared prefix only this is known: that others may want it at once
        world.work.next_use[seg] = 0.0 if world.plan.shared[seg] == 1 else when


@njit(cache=True)
def _yield(world, w, now):
    """SAGA section 7: a request that has waited for too long makes one of a tenant with a lower share yield."""
    run, plan, patience = world.run, world.plan, world.real[st.AFS_PREEMPT]
    if now - run.wf[w, st.YIELDED_AT] < patience:
        return  # the last one has not had its turn yet
    first, share = -1, -1.0
    for k in range(run.w[w, st.N_WAITING]):
        step = run.queue[w, k]
        mine = run.afs[w, plan.tenant[plan.session[step]]]
        if now - run.f[step, st.READY] > patience and mine > share and may_be_served(world, w, step):
            first, share = step, mine
    if first < 0:
        return
    victim = -1
    for k in range(run.w[w, st.N_RUNNING]):
        theirs = run.afs[w, plan.tenant[plan.session[run.running[w, k]]]]
        if theirs < share:
            victim, share = k, theirs
        elif victim >= 0 and theirs == share:
            victim = k  # the one scheduled last
    if victim < 0:
        return
    run.w[w, st.URGENT] = first + 1
    run.wf[w, st.YIELDED_AT] = now
    run.i[run.running[w, victim], st.YIELDED] += 1
    run.count[st.AFS_PREEMPTED] += 1
    _preempt(world, w, victim, now)


# ---------------------------------------------------------------- one iteration
@njit(cache=True)
def begin_iteration(world, w, now):
    """What comes before the worker's next iteration is composed; a second time at the same instant it does nothing."""
    account(world, w, now)
    if epoch(world, w, now) and world.real[st.AFS_PREEMPT] < np.inf:
        _yield(world, w, now)


@njit(cache=True)
def schedule(world, w, now):
    """Compose the worker's next iteration. Returns its seconds, 0 when there is nothing to run."""
    tree, pool, plan, run = world.tree, world.pool, world.plan, world.run
    block, first_part = world.limits[st.BLOCK], world.run.count[st.N_PARTS]
    begin_iteration(world, w, now)
    if world.literal:
        ev.drop_expired(tree, pool, world.chains, world.tables, world.g, w, now, world.work.next_use, world.work.evict)
    budget = world.limits[st.BATCHED]
    prefill, pairs, context, deepest, kv_read, decoding = 0, 0.0, 0, 0, 0, 0
    preempted, as_vllm = False, world.limits[st.TIER] == 1 and world.limits[st.AS_VLLM] == 1
    lazy = world.limits[st.LAZY] == 1
    k, order, steps, prompt = 0, run.running, run.i, plan.prompt
    while k < run.w[w, st.N_RUNNING] and budget > 0:
        step = order[w, k]
        have = steps[step, st.COMPUTED]
        coming = steps[step, st.TOKEN_COMES]
        if coming == 1 and steps[step, st.GENERATED] + 1 >= plan.output[step]:
            k += 1  # its last token is on its way
            continue
        n = scheduled_tokens(prompt[step] + steps[step, st.GENERATED] + coming, have, budget)
        need = blocks_for(have + n, block) - blocks_for(have, block)
        tenant = plan.tenant[plan.session[step]]
        gone = False
        while need > 0 and pool.n[w, kv.FREE] + takeable(world, w, tenant) < need:
            if run.w[w, st.N_RUNNING] == 1 and pool.n[w, kv.FREE] + kv.evictable(pool, w) >= need:
                break  # nothing is left to preempt: floors give way
            preempted = True
            if _preempt(world, w, run.w[w, st.N_RUNNING] - 1, now) == step:
                gone = True
                break
        if gone:
            break
        if need > 0 or (have + n) // block > have // block:
            free_blocks_for(world, w, need, now, world.whole, tenant)
            held, copies = kv.grow(tree, pool, w, step, steps[step, st.HELD], have, have + n, block)
            steps[step, st.HELD] = held
            steps[step, st.COPIES] += copies
        steps[step, st.SCHEDULED] = n
        if as_vllm and not lazy:
            offer(world, w, step, have + n)
        log_part(world, step, n)
        if have < steps[step, st.TARGET]:
            prefill += n
            pairs += n * (have + 0.5 * n)
            context += have
            deepest = max(deepest, have)
            run.count[st.RECOMPUTED] += max(min(have + n, steps[step, st.KNOWN]) - have, 0)
        else:
            decoding += 1
            kv_read += have
        budget -= n
        k += 1
    fetching = world.limits[st.TIER] == 1 or world.real[st.LINK_RATE] > 0
    lets = run.w[w, st.LETS]
    while not preempted and lets != st.NOBODY and run.w[w, st.N_WAITING] > 0 and budget > 0 and (
            run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] < world.limits[st.MAX_SEQS]):
        place = choose(world, w, now)
        step = run.queue[w, place]
        i = run.i[step]
        tenant = plan.tenant[plan.session[step]]
        known = plan.prompt[step] + i[st.GENERATED]
        cached = min(kv.resident_prefix(tree, pool, w, step), (known - 1) // block)
        busy = run.w[w, st.N_RUNNING] + run.w[w, st.N_LOADING] > 0
        if busy or world.g[w, ft.G_ADMIT_MEMORY] > 0:
            fill_admission(world, w, step, cached, known, now)
            if busy and lets == st.AS_POLICY and not lets_in(world, world.work.admit):
                if not now - run.f[step, st.SINCE] > world.real[st.STARVE]:
                    break
                run.count[st.STARVED] += 1
        have = cached * block
        n = scheduled_tokens(known, have, budget)
        need = blocks_for(have + n, block) - cached
        link, there, ready = 0, cached, now
        if fetching:
            link, there, ready = find_source(world, w, step, cached, known, now)
            if link > 0:
                n, need = 0, there - cached
        own = kv.reusable(tree, pool, w, step, cached)
        gate = max(need, blocks_wanted(world, cached, known, budget)) - own
        room = takeable(world, w, tenant) if busy else kv.evictable(pool, w)
        if pool.n[w, kv.FREE] + room - kv.idle_hit_blocks(tree, pool, w, step, cached + own) < gate:
            break
        log_event(world, START, step, now, known, 0)
        catch_up_others(world, w, tree.chain[step], now)
        if world.limits[st.TIER] == 1:
            ft.note_found(world.g, w, ft.lost_blocks(world.chains, tree.chain[step], float(known), float(cached),
                                                     block), float(there - cached) if link == 1 else 0.0, now)
        _start(world, w, place, cached, known, now)
        if lets == st.ONE:
            lets = st.NOBODY
        if world.g[w, ft.G_ADMIT_MEMORY] > 0:
            ft.remember_admission(world.g, w, world.work.admit, float(cached), float(blocks_for(known, block)),
                                  world.admit_score, world.admit_params, world.admit_scratch)
        if link > 0:
            free_blocks_for(world, w, need, now, world.whole, tenant)
            i[st.HELD], i[st.COPIES] = kv.grow(tree, pool, w, step, i[st.HELD], have, there * block, block)
            i[st.COMPUTED] = there * block
            wait_for_copy(world, w, step, link, need * block, ready)
            if link == 1 and lazy:
                loaded(world, w, step, cached, there)
            elif link == 1 and as_vllm:
                loads(world, step, cached, there)
            _begun(world, w, step, cached, known, now)
            continue
        i[st.HELD] = kv.pin(tree, pool, w, step, i[st.HELD], cached + own)
        free_blocks_for(world, w, need - own, now, world.whole, tenant)
        i[st.HELD], copies = kv.grow(tree, pool, w, step, i[st.HELD], have, have + n, block)
        i[st.COPIES] += copies
        i[st.SCHEDULED] = n
        if as_vllm and not lazy:
            offer(world, w, step, have + n)
        _begun(world, w, step, cached, known, now)
        log_part(world, step, n)
        prefill += n
        pairs += n * (have + 0.5 * n)
        context += have
        deepest = max(deepest, have)
        run.count[st.RECOMPUTED] += max(min(have + n, i[st.KNOWN]) - have, 0)
        budget -= n
    run.count[st.PREFILLED] += prefill
    if prefill == 0 and decoding == 0:
        return 0.0
    run.count[st.ITERATIONS] += 1
    seen(world, prefill, deepest, decoding, kv_read)
    length = seconds(world.cost, prefill, pairs, context, kv_read, decoding)
    log_iteration(world, w, first_part, now, length)
    return length


@njit(cache=True)
def _begun(world, w, step, cached, known, now):
    """Tell an eviction policy with memory that the step got its first blocks."""
    if world.g[w, ft.G_MEMORY] > 0:
        ev.notify(world.pool, world.chains, world.tables, world.g, w, world.tree.chain[step], now, ft.BEGIN,
                float(cached), float(blocks_for(known, world.limits[st.BLOCK])), 0.0, now, world.evict_score,
                world.evict_params, world.evict_scratch, world.work.evict)


@njit(cache=True)
def _start(world, w, place, cached, known, now):
    """The step at this place of the queue leaves it and pins its cached prefix."""
    tree, pool, run = world.tree, world.pool, world.run
    step = run.queue[w, place]
    i, f = run.i[step], run.f[step]
    block = world.limits[st.BLOCK]
    dequeue(world, w, place, True)
    if run.w[w, st.URGENT] == step + 1:
        run.w[w, st.URGENT] = 0
    run.running[w, run.w[w, st.N_RUNNING]] = step
    run.w[w, st.N_RUNNING] += 1
    i[st.KNOWN] = min(kv.known_prefix(tree, pool, step), (known - 1) // block) * block
    for at in range(tree.path_off[step], tree.path_off[step + 1]):
        seg = tree.path[at]
        if tree.start[seg] >= cached:
            break
        r = kv.row(pool, w, seg)
        if pool.ref[r] == 0:
            hit = min(pool.res[r], cached - tree.start[seg])
            run.total[st.USEFUL_IDLE] += hit * (now - pool.last[r])
    i[st.HELD] = kv.pin(tree, pool, w, step, 0, cached)
    i[st.COPIES] = 0
    i[st.COMPUTED] = cached * block
    i[st.TARGET] = known
    i[st.STATE] = st.RUNNING
    if np.isnan(f[st.START_S]):
        f[st.START_S] = now
        i[st.CACHED] = cached * block
        run.count[st.HIT] += cached * block
        run.count[st.PROMPT] += world.plan.prompt[step]
        charge(world, w, step, known - cached * block, 0)
    ch.schedule(world.chains, tree.chain[step], now)
    served(world, w, tree.chain[step])


@njit(cache=True)
def finish_iteration(world, w, now):
    """What the iteration computed is there: tokens advance, answers end, children are born."""
    run, order, steps = world.run, world.run.running, world.run.i
    ahead = world.limits[st.ASYNC] == 1
    account(world, w, now)
    kept = 0
    for k in range(run.w[w, st.N_RUNNING]):
        step = order[w, k]
        if ahead:  # tokens advanced when the iteration was composed
            token = steps[step, st.TOKEN_COMES] == 1
            steps[step, st.TOKEN_COMES] = steps[step, st.TOKEN_BEHIND]
            steps[step, st.TOKEN_BEHIND] = 0
        else:
            steps[step, st.COMPUTED] += steps[step, st.SCHEDULED]
            steps[step, st.SCHEDULED] = 0
            token = steps[step, st.COMPUTED] == world.plan.prompt[step] + steps[step, st.GENERATED]
        if token and _answered(world, w, step, now):
            continue
        order[w, kept] = step
        kept += 1
    run.w[w, st.N_RUNNING] = kept
    if run.w[w, st.STALE] > 0:
        _late_tokens(world, w, now)


@njit(cache=True)
def _late_tokens(world, w, now):
    """Tokens of requests that were preempted while they were computed count as theirs."""
    run = world.run
    run.w[w, st.STALE] = 0
    for k in range(run.w[w, st.N_WAITING] - 1, -1, -1):
        step = run.queue[w, k]
        if run.i[step, st.TOKEN_COMES] == 1:
            run.i[step, st.TOKEN_COMES] = 0
            if run.i[step, st.GENERATED] + 1 >= world.plan.output[step]:
                dequeue(world, w, k, False)
                world.chains[world.tree.chain[step], ch.STARTED] = now  # nothing more was attained since
            _answered(world, w, step, now)


@njit(cache=True)
def composed(world, w):
    """Under asynchronous scheduling: what the iteration just composed computes is there for the one composed next."""
    run, behind = world.run, world.run.w[w, st.BUSY] == 1
    for k in range(run.w[w, st.N_RUNNING]):
        step = run.running[w, k]
        i = run.i[step]
        if i[st.SCHEDULED] > 0:
            i[st.COMPUTED] += i[st.SCHEDULED]
            i[st.SCHEDULED] = 0
            token = i[st.COMPUTED] == world.plan.prompt[step] + i[st.GENERATED] + i[st.TOKEN_COMES]
            i[st.TOKEN_BEHIND if behind else st.TOKEN_COMES] = 1 if token else 0


@njit(cache=True)
def _answered(world, w, step, now):
    """A token of the step's answer is there. Returns whether it was the last."""
    run, i, times = world.run, world.run.i[step], world.run.f
    i[st.GENERATED] += 1
    charge(world, w, step, 0, 1)
    if np.isnan(times[step, st.FIRST_S]):
        times[step, st.FIRST_S] = now
        run.wf[w, st.QUEUED_TOKENS] -= i[st.BOOKED]
    if i[st.GENERATED] < world.plan.output[step]:
        return False
    catch_up_others(world, w, world.tree.chain[step], now)
    _finish_step(world, w, step, now)
    _released(world, w, world.tree.chain[step], now)
    return True


@njit(cache=True)
def _finish_step(world, w, step, now):
    plan, run = world.plan, world.run
    i, c, s = run.i[step], world.tree.chain[step], plan.session[step]
    log_event(world, END, step, now, i[st.COMPUTED], 1)
    drop(world, w, step, now)
    if world.limits[st.TIER] == 1 and world.limits[st.AS_VLLM] == 1 and world.limits[st.LAZY] == 0:
        finished_with(world, w, step)
    i[st.STATE] = st.DONE
    run.f[step, st.DONE_S] = now
    run.count[st.STEPS_DONE] += 1
    run.w[w, st.IN_FLIGHT] -= 1
    run.w[w, st.CHANGED] = 1
    run.wf[w, st.FLIGHT_TOKENS] -= plan.prompt[step]
    final = plan.final[step] == 1
    ended = final and world.limits[st.END_HINT] == 1
    ch.finish(world.chains, world.tables, w, c, now, float(plan.prompt[step]), float(plan.output[step]),
              plan.tool[step] if world.limits[st.TOOL_NAMES] == 1 else np.int32(-1), ended)
    finished(world, step, ended)
    if world.limits[st.CLAIRVOYANT] == 1:
        foretell(world, step, np.inf)  # unless the chain's next step wants it, see below
    if not final or world.limits[st.END_HINT] == 0:
        plan_prefetch(world, w, step, now)
    for at in range(plan.child_off[step], plan.child_off[step + 1]):
        kid = plan.child[at]
        same = world.tree.chain[kid] == c
        run.f[kid, st.READY_AT] = max(run.f[kid, st.READY_AT], now + (plan.gap[step] if same else 0.0))
        run.i[kid, st.PENDING] -= 1
        if run.i[kid, st.PENDING] == 0:
            push(world.heap, run.f[kid, st.READY_AT], kid)
        if same and world.limits[st.CLAIRVOYANT] == 1:
            foretell(world, kid, run.f[kid, st.READY_AT])
    run.left[s] -= 1
    if run.left[s] == 0:
        run.done_s[s] = now
        run.count[st.SESSIONS_DONE] += 1
        nxt = run.count[st.NEXT_SESSION]
        if world.limits[st.POPULATION] > 0 and nxt < len(run.left):
            run.count[st.NEXT_SESSION] += 1
            push(world.heap, now, len(plan.session) + world.limits[st.WORKERS] + nxt)
