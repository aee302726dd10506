"""Runs of iterations in which nothing but decoding happens, taken in one go and exactly.

While a worker's queue is empty and every running request decodes, its iterations are known in advance until the first
answer ends or blocks run out. Such a run is entered on the heap as one event. Only an arrival can cut it short:
`settle` then applies what has been completed by that time, so that the state is what iteration by iteration would be.
Times are summed in the same order and with the same terms, so they are the same numbers.
"""

from __future__ import annotations

from numba import njit

from saga_rl.sim import cache as kv
from saga_rl.sim import state as st
from saga_rl.sim.heap import push
from saga_rl.sim.worker import account, new_epoch


@njit(cache=True)
def _new_blocks(world, w, ahead):
    """Blocks that the worker's next iteration but `ahead` will allocate."""
    run, block = world.run, world.limits[st.BLOCK]
    n = 0
    for k in range(run.w[w, st.N_RUNNING]):
        if (run.i[run.running[w, k], st.COMPUTED] + ahead) % block == 0:
            n += 1
    return n


@njit(cache=True)
def _kv_read(world, w):
    run = world.run
    total = 0.0
    for k in range(run.w[w, st.N_RUNNING]):
        total += run.i[run.running[w, k], st.COMPUTED]
    return total


@njit(cache=True)
def coast(world, w, now):
    """Enter the worker's next run of pure decode iterations as one event; False if there is none of two or more."""
    plan, run, real = world.plan, world.run, world.real
    decoding = run.w[w, st.N_RUNNING]
    if run.w[w, st.N_WAITING] > 0 or decoding == 0 or decoding > world.limits[st.BATCHED]:
        return False
    most = 1 << 40
    for k in range(decoding):
        step = run.running[w, k]
        i = run.i[step]
        if plan.prompt[step] + i[st.GENERATED] - i[st.COMPUTED] != 1 or i[st.COMPUTED] < i[st.TARGET]:
            return False
        most = min(most, plan.output[step] - i[st.GENERATED])
    free = world.pool.n[w, kv.FREE]
    kv_read, t, n = _kv_read(world, w), now, 0
    while n < most:
        free -= _new_blocks(world, w, n)
        if free < 0:
            break
        t += real[0] + real[2] * (kv_read + n * decoding) + real[3] * decoding
        n += 1
    if n < 2:
        return False
    run.w[w, st.COAST] = n
    run.wf[w, st.COAST_FROM] = now
    run.wf[w, st.DUE] = t
    run.w[w, st.BUSY] = 1
    push(world.heap, t, len(plan.session) + w)
    return True


@njit(cache=True)
def settle(world, w, now):
    """If the worker coasts, bring it to the iteration that is in flight at `now`, and enter that one's end."""
    run, real, pool = world.run, world.real, world.pool
    n, decoding = run.w[w, st.COAST], run.w[w, st.N_RUNNING]
    if n == 0:
        return
    run.w[w, st.COAST] = 0
    account(world, w, run.wf[w, st.COAST_FROM])
    kv_read, t, end, k = _kv_read(world, w), run.wf[w, st.COAST_FROM], 0.0, 0
    busy = pool.n[w, kv.PINNED] + pool.n[w, kv.PRIVATE]
    idle = pool.n[w, kv.RESIDENT] - pool.n[w, kv.PINNED]
    while True:
        new_epoch(world, w, t)
        busy += _new_blocks(world, w, k)
        end = t + (real[0] + real[2] * (kv_read + k * decoding) + real[3] * decoding)
        if end >= now or k == n - 1:
            break
        run.total[st.IN_USE] += (end - t) * (busy + idle)
        run.total[st.BUSY_BLOCKS] += (end - t) * busy
        t = end
        k += 1
    run.wf[w, st.SEEN_S] = t
    run.count[st.ITERATIONS] += k + 1
    block = world.limits[st.BLOCK]
    for at in range(decoding):
        step = run.running[w, at]
        i = run.i[step]
        have = i[st.COMPUTED]
        i[st.HELD], copies = kv.grow(world.tree, pool, w, step, i[st.HELD], have, have + k + 1, block)
        i[st.COPIES] += copies
        i[st.COMPUTED] = have + k
        i[st.GENERATED] += k
        i[st.SCHEDULED] = 1
    if end != run.wf[w, st.DUE]:
        run.wf[w, st.DUE] = end
        push(world.heap, end, len(world.plan.session) + w)
