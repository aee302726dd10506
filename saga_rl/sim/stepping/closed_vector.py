"""Many closed-loop runs stepped in one compiled call: the loops of the native vectors of placement, ordering,
admission, joint and scheduler environments.

Every slot plays an episode from a common pool, with the code that the steppers of the single environments run. A slot
has one stretch of memory; an episode begins by copying its image there (`packing`). The event loop is called through a
pointer: there is one compiled copy of it for everything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numba.typed import List
from numpy.typing import NDArray

from saga_rl.policies.base import PolicySet
from saga_rl.sim.compiled.jit import compiled, function_type
from saga_rl.sim.compiled.refs import world_ref
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.loop import ALL, CHOOSE, ENDED, EVICT, HOLD, PLACE, PLACEMENTS, QUEUE, SCORE_ARGS, run_on
from saga_rl.sim.stepping import closed_slots as cs
from saga_rl.sim.stepping import replay_vector as vc
from saga_rl.sim.stepping.closed_rows import queue_of, show, victims_of
from saga_rl.sim.stepping.queue_stepper import IDLE, OFFERED, list_waiting, weigh
from saga_rl.sim.stepping.replay_stepper import entry_point
from saga_rl.sim.stepping.victims import take_on, unasked
from saga_rl.sim.stepping.world_memory import Template, memory

STEP, BEGIN, LEAVE = range(3)
"""What `_step` does with a slot."""
MIN_TCT_S, TOKENS_UNIT, P95, P95_FROM = 1e-3, 1000.0, 0.95, 20
"""As in `env.rewards`."""
PAUSES = {cs.PLACEMENT: PLACEMENTS, cs.ORDER: QUEUE, cs.ADMIT: QUEUE, cs.JOINT: QUEUE, cs.SCHEDULER: ALL}


@njit(cache=True)
def _run_on(hall, world, chosen):
    return hall.run_on(world, hall.place_score, hall.place_params, hall.place_scratch, hall.order_score,
                       hall.order_params, hall.order_scratch, hall.admit_score, hall.admit_params, hall.admit_scratch,
                       hall.evict_score, hall.evict_params, hall.evict_scratch, hall.whole, hall.literal, hall.pause,
                       chosen)


@njit(cache=True)
def _go(hall, world, b, chosen):
    """Run on to the next pause; True if somebody has to choose there. Notes whose sessions ended."""
    state = _run_on(hall, world, chosen)
    while state == EVICT and not take_on(world, victims_of(hall, b), np.int64(-1), hall.rules[cs.EVICT_BLOCKS]):
        state = _run_on(hall, world, np.int64(0))
    hall.book[b, cs.DECISION] = state
    _note_ended(hall, world, b)
    hall.shown[b] = 0
    if state == ENDED:
        if world.heap.n[0] == 0 and world.run.left.sum() > 0:
            raise RuntimeError("the simulation stopped with steps undone: a request that fits was never served")
        return False
    if state == CHOOSE:
        list_waiting(world, hall.order_score, hall.order_params, hall.order_scratch, queue_of(hall, b))
    return True


@njit(cache=True)
def _note_ended(hall, world, b):
    run, mine, logs = world.run, hall.book[b], hall.logs
    if run.count[st.SESSIONS_DONE] == mine[cs.DONE]:
        return
    for s in range(len(run.done_s)):
        if hall.seen[b, s] == 0 and np.isfinite(run.done_s[s]):
            hall.seen[b, s] = 1
            mine[cs.DONE] += 1
            logs[0] += 1.0
            logs[int(logs[0])] = math.log(max(run.done_s[s] - run.begin_s[s], MIN_TCT_S))


@njit(cache=True)
def _chosen(hall, world, b, row):
    """What the event loop is told for the action on this row."""
    kind, decision = hall.rules[cs.KIND], hall.book[b, cs.DECISION]
    if decision == PLACE:
        return row
    if decision == EVICT:
        return np.int64(0)
    if kind != cs.ORDER:
        if row == hall.obs.shape[1] - 1:
            return HOLD
    elif hall.shown[b, IDLE] == 0:
        weigh(world, queue_of(hall, b), row)
        if not hall.admit_score(hall.admit_rows[row], hall.admit_params, hall.admit_scratch) > 0.0:
            return HOLD
    return hall.place[b, row]


@njit(cache=True)
def _advance(hall, world, b, row):
    """Act on this row of the decision; False at the end."""
    if hall.book[b, cs.DECISION] == EVICT and take_on(world, victims_of(hall, b), row, hall.rules[cs.EVICT_BLOCKS]):
        return True
    return _go(hall, world, b, _chosen(hall, world, b, row))


@njit(cache=True)
def _forced(hall, b):
    """Whether row 0 is all there is to choose."""
    kind, one, idle = hall.rules[cs.KIND], hall.shown[b, OFFERED] == 1, hall.shown[b, IDLE] == 1
    return (kind == cs.ORDER and one) or (kind == cs.ADMIT and idle) or (
        (kind == cs.JOINT or kind == cs.SCHEDULER) and one and idle)


@njit(cache=True)
def _play_on(hall, world, b, row):
    """Act on this row (-1: begin) and go on to the next moment with a choice; False at the end."""
    more = _go(hall, world, b, row) if row < 0 else _advance(hall, world, b, row)
    while more and _forced(hall, b):
        more = _advance(hall, world, b, np.int64(0))
    if hall.rules[cs.KIND] == cs.SCHEDULER:
        hall.book[b, cs.UNASKED] = unasked(world)
    return more


@njit(cache=True)
def _settle(hall, world, b):
    """The reward of what happened since the last call, as `env.rewards`; its costs go to `costs`."""
    run, mine, costs, logs, n = world.run, hall.book[b], hall.costs[b], hall.logs, int(hall.logs[0])
    total, ended, have = 0.0, hall.ended[b], mine[cs.DONE] - n
    for k in range(n):
        total += logs[1 + k]
    tokens, gap = run.count[st.RECOMPUTED], run.total[st.SPREAD]
    costs[cs.LOG_TCT] = total
    costs[cs.RECOMPUTED_TOKENS] = float(tokens - mine[vc.TOKENS])
    costs[cs.GAP_TOKENS] = gap - hall.gap[b]
    by_tokens = hall.rules[cs.BY_TOKENS] == 1
    reward = 0.0 - (costs[cs.RECOMPUTED_TOKENS] / TOKENS_UNIT if by_tokens else total)
    if hall.real[cs.P95_WEIGHT] > 0 and not by_tokens and n > 0 and have >= P95_FROM:
        place = (have - 1) * P95
        low = int(place)
        share = place - low
        p95 = ended[low] if share == 0.0 else ended[low] + share * (ended[low + 1] - ended[low])
        late = 0.0
        for k in range(n):
            late += max(logs[1 + k] - p95, 0.0)
        reward -= hall.real[cs.P95_WEIGHT] * late
    reward -= hall.real[cs.FAIRNESS_WEIGHT] * costs[cs.GAP_TOKENS]
    for k in range(n):
        at = have + k
        while at > 0 and ended[at - 1] > logs[1 + k]:
            ended[at] = ended[at - 1]
            at -= 1
        ended[at] = logs[1 + k]
    logs[0] = 0.0
    mine[vc.TOKENS], hall.gap[b] = tokens, gap
    return reward


@njit(cache=True)
def _world(hall, b):
    return hall.games[b * hall.order.shape[1] + hall.book[b, vc.EPISODE]]


@njit(cache=True)
def _begin(hall, b):
    """The slot begins the next episode of its order and comes to its first decision."""
    mine = hall.book[b]
    mine[vc.EPISODE] = hall.order[b, mine[vc.PLAYED] % hall.order.shape[1]]
    mine[vc.PLAYED] += 1
    image = hall.images[mine[vc.EPISODE]]
    hall.memory[b, :len(image)] = image
    mine[vc.DECISIONS], mine[vc.INVALID], mine[vc.TOKENS], mine[cs.DONE] = 0, 0, 0, 0
    hall.gap[b], hall.logs[0], hall.victims_when[b, 0] = 0.0, 0.0, np.nan
    hall.seen[b] = 0
    world = _world(hall, b)
    mine[vc.OVER] = not _play_on(hall, world, b, np.int64(-1))
    _settle(hall, world, b)  # what came before the first decision is nobody's doing


def _step(hall, actions, what):
    """Each slot, as `what` says, takes its action and plays on to its next decision, or begins an episode, or is left
    alone; then it writes what it sees."""
    mode, limit = hall.rules[cs.MODE], hall.rules[cs.MAX_DECISIONS]
    for b in range(len(actions)):
        if what[b] == LEAVE:
            continue
        mine = hall.book[b]
        hall.reward[b] = 0.0
        hall.terminated[b] = hall.truncated[b] = False
        if what[b] == BEGIN or mine[vc.OVER] == 1:
            _begin(hall, b)
            show(hall, _world(hall, b), b, mine[vc.OVER] == 1, hall.obs[b], hall.mask[b])
            continue
        action, world = actions[b], _world(hall, b)
        if not (0 <= action < hall.mask.shape[1] and hall.mask[b, action]):
            action = np.int64(0)
            mine[vc.INVALID] += 1
        over = not _play_on(hall, world, b, action)
        mine[vc.DECISIONS] += 1
        hall.reward[b] = _settle(hall, world, b)
        hall.terminated[b] = over
        hall.truncated[b] = not over and 0 < limit <= mine[vc.DECISIONS]
        if over or hall.truncated[b]:
            if mode == vc.SAME_STEP:
                before, mine[vc.ROWS] = mine[vc.ROWS], 0
                hall.final_obs[b] = 0.0
                show(hall, world, b, over, hall.final_obs[b], hall.final_mask[b])
                hall.final_book[b] = mine
                hall.final_costs[b] = hall.costs[b]
                mine[vc.ROWS] = before
                _begin(hall, b)
                world, over = _world(hall, b), mine[vc.OVER] == 1
            else:
                mine[vc.OVER] = 1
        show(hall, world, b, over, hall.obs[b], hall.mask[b])


class ClosedFleet:
    """B slots over a pool of episodes; `slots` holds what `step` and `reset` write.

    policies decide what the agent does not. pool: worlds as `cluster.make_fresh` makes them, for one configuration.
    """

    def __init__(self, slots: cs.Slots, pool: list[Template], policies: PolicySet) -> None:
        self.slots, kind = slots, int(slots.rules[cs.KIND])
        slots_memory = memory(len(slots.book), max(len(t.image) for t in pool))
        worlds = [t.on(stretch) for stretch in slots_memory for t in pool]
        games, images = List([world_ref(w) for w in worlds]), List([t.image for t in pool])
        evict = policies.eviction
        crew: list[Any] = []
        for policy in (policies.placement, policies.ordering, policies.admission, evict):
            crew += [policy.score, policy.params, np.zeros(max(policy.scratch, 1))]
        crew += [bool(evict.whole_chain), bool(evict.drop_expired), PAUSES[kind]]
        loop = compiled(run_on.py_func, (games[0], *crew, 0), SCORE_ARGS)
        args = (loop, *crew, games, images, slots_memory, slots)
        self._kept = (worlds, pool, args)  # compiled code owns none of their arrays
        self._hall = compiled(cs.hall_ref, args, SCORE_ARGS, {0: function_type(loop)})(*args)
        self._all, self._none = np.full(len(slots.book), STEP), np.zeros(len(slots.book), np.int64)
        self._step = entry_point(compiled(_step, (self._hall, self._none, self._all)))

    def step(self, actions: NDArray[np.int64]) -> None:
        """actions: (B,) rows; one that is masked counts as invalid and becomes row 0."""
        self._step(self._hall, actions, self._all)

    def reset(self, which: NDArray[np.bool_]) -> None:
        """The slots that `which` (B,) marks begin their next episode."""
        self._step(self._hall, self._none, np.where(which, BEGIN, LEAVE))
