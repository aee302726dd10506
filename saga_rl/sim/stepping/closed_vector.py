"""Closed-loop runs stepped in one compiled call: the loops of the environments of placement, ordering, admission, joint
and scheduler.

Every slot plays an episode from a common pool; a single environment is one slot with a pool of one. A slot has one
stretch of memory; an episode begins by copying its image there (`world_memory`), and to copy the stretch is to copy
the world (`ClosedRunner.clone`). The event loop is called through a pointer: there is one compiled copy of it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba.typed import List
from numpy.typing import NDArray

from saga_rl.njit import njit
from saga_rl.policies.base import PolicySet
from saga_rl.sim.compiled.jit import compiled, entry_point, function_type
from saga_rl.sim.compiled.refs import refs_of, world_ref
from saga_rl.sim.engine import state as st
from saga_rl.sim.engine.admit import lets_in
from saga_rl.sim.engine.loop import ALL, CHOOSE, ENDED, EVICT, HOLD, PLACE, PLACEMENTS, QUEUE, run_on
from saga_rl.sim.stepping import book as bk
from saga_rl.sim.stepping import closed_slots as cs
from saga_rl.sim.stepping.closed_rows import queue_of, show, victims_of
from saga_rl.sim.stepping.threads import SlotThreads, cuts
from saga_rl.sim.stepping.victims import evict_chosen, unasked
from saga_rl.sim.stepping.waiting_rows import IDLE, OFFERED, fill_admission_row, list_waiting
from saga_rl.sim.stepping.world_memory import Template, memory

MIN_TCT_S, TOKENS_UNIT, P95, P95_FROM = 1e-3, 1000.0, 0.95, 20
"""MIN_TCT_S: shorter completion times count as this, so that the logarithm stays finite. TOKENS_UNIT: tokens computed
again that cost one unit of reward. P95_FROM: sessions that must have ended before their 95th percentile is an estimate.
"""
PAUSES = {cs.PLACEMENT: PLACEMENTS, cs.ORDER: QUEUE, cs.ADMIT: QUEUE, cs.JOINT: QUEUE, cs.SCHEDULER: ALL}


@njit(cache=True)
def _go(vector, world, b, chosen):
    """Run on to the next pause; True if somebody has to choose there. Notes whose sessions ended."""
    state = vector.run_on(world, vector.pause, chosen)
    least = vector.rules[cs.EVICT_BLOCKS]
    while state == EVICT and not evict_chosen(world, victims_of(vector, b), np.int64(-1), least):
        state = vector.run_on(world, vector.pause, np.int64(0))
    vector.book[b, bk.DECISION] = state
    _note_ended(vector, world, b)
    vector.shown[b] = 0
    if state == ENDED:
        if world.heap.n[0] == 0 and world.run.left.sum() > 0:
            raise RuntimeError("the simulation stopped with steps undone: a request that fits was never served")
        return False
    if state == CHOOSE:
        list_waiting(world, queue_of(vector, b))
    return True


@njit(cache=True)
def _note_ended(vector, world, b):
    run, mine, logs = world.run, vector.book[b], vector.logs
    if run.count[st.SESSIONS_DONE] == mine[bk.DONE]:
        return
    for s in range(len(run.done_s)):
        if vector.seen[b, s] == 0 and np.isfinite(run.done_s[s]):
            vector.seen[b, s] = 1
            mine[bk.DONE] += 1
            logs[0] += 1.0
            logs[int(logs[0])] = math.log(max(run.done_s[s] - run.begin_s[s], MIN_TCT_S))
            vector.live[b, cs.N_ENDED] += 1.0
            vector.live[b, cs.ENDED_S] += run.done_s[s] - vector.live[b, cs.SINCE]


@njit(cache=True)
def _chosen(vector, world, b, row):
    """What the event loop is told for the action on this row."""
    kind, decision = vector.rules[cs.KIND], vector.book[b, bk.DECISION]
    if decision == PLACE:
        return row
    if decision == EVICT:
        return np.int64(0)
    if kind != cs.ORDER:
        if row == vector.obs.shape[1] - 1:
            return HOLD
    elif vector.shown[b, IDLE] == 0:
        fill_admission_row(world, queue_of(vector, b), row)
        if not lets_in(world, vector.admit_rows[row]):
            return HOLD
    return vector.place[b, row]


@njit(cache=True)
def _advance(vector, world, b, row):
    """Act on this row of the decision; False at the end."""
    evicts = vector.book[b, bk.DECISION] == EVICT
    if evicts and evict_chosen(world, victims_of(vector, b), row, vector.rules[cs.EVICT_BLOCKS]):
        return True
    return _go(vector, world, b, _chosen(vector, world, b, row))


@njit(cache=True)
def _forced(vector, b):
    """Whether row 0 is all there is to choose."""
    kind, one, idle = vector.rules[cs.KIND], vector.shown[b, OFFERED] == 1, vector.shown[b, IDLE] == 1
    return (kind == cs.ORDER and one) or (kind == cs.ADMIT and idle) or (
        (kind == cs.JOINT or kind == cs.SCHEDULER) and one and idle)


@njit(cache=True)
def _play_on(vector, world, b, row):
    """Act on this row (-1: begin) and go on to the next moment with a choice; False at the end."""
    more = _go(vector, world, b, row) if row < 0 else _advance(vector, world, b, row)
    while more and _forced(vector, b):
        more = _advance(vector, world, b, np.int64(0))
    if vector.rules[cs.KIND] == cs.SCHEDULER:
        vector.book[b, bk.UNASKED] = unasked(world)
    return more


@njit(cache=True)
def _lived(vector, world, b):
    """Return the seconds that sessions lived since the last call, summed over them. They begin in their order."""
    run, mine = world.run, vector.live[b]
    now, k = run.total[st.NOW], int(mine[cs.BEGUN])
    total = mine[cs.EARLIER] + mine[cs.ALIVE] * (now - mine[cs.SINCE])
    while k < len(run.begin_s) and np.isfinite(run.begin_s[k]):
        total += now - run.begin_s[k]
        k += 1
    total -= mine[cs.N_ENDED] * (now - mine[cs.SINCE]) - mine[cs.ENDED_S]
    mine[cs.ALIVE] += k - mine[cs.BEGUN] - mine[cs.N_ENDED]
    mine[cs.SINCE], mine[cs.BEGUN], mine[cs.N_ENDED], mine[cs.ENDED_S], mine[cs.EARLIER] = now, k, 0.0, 0.0, 0.0
    return total


@njit(cache=True)
def _reward(vector, world, b):
    """The reward of what happened since the last call, see `env.rewards`; its costs go to `costs`."""
    run, mine, costs, logs, n = world.run, vector.book[b], vector.costs[b], vector.logs, int(vector.logs[0])
    total, ended, have = 0.0, vector.ended[b], mine[bk.DONE] - n
    for k in range(n):
        total += logs[1 + k]
    tokens, gap = run.count[st.RECOMPUTED], run.total[st.SPREAD]
    costs[bk.LOG_TCT] = total
    costs[bk.RECOMPUTED_TOKENS] = float(tokens - mine[bk.TOKENS])
    costs[bk.GAP_TOKENS] = gap - vector.gap[b]
    costs[bk.SESSION_S] = _lived(vector, world, b)
    by = vector.rules[cs.REWARD]
    if by == cs.DENSE:
        reward = 0.0 - costs[bk.SESSION_S]
    else:
        reward = 0.0 - (costs[bk.RECOMPUTED_TOKENS] / TOKENS_UNIT if by == cs.BY_TOKENS else total)
    if vector.real[cs.P95_WEIGHT] > 0 and by == cs.BY_TCT and n > 0 and have >= P95_FROM:
        place = (have - 1) * P95
        low = int(place)
        share = place - low
        p95 = ended[low] if share == 0.0 else ended[low] + share * (ended[low + 1] - ended[low])
        late = 0.0
        for k in range(n):
            late += max(logs[1 + k] - p95, 0.0)
        reward -= vector.real[cs.P95_WEIGHT] * late
    reward -= vector.real[cs.FAIRNESS_WEIGHT] * costs[bk.GAP_TOKENS]
    for k in range(n):
        at = have + k
        while at > 0 and ended[at - 1] > logs[1 + k]:
            ended[at] = ended[at - 1]
            at -= 1
        ended[at] = logs[1 + k]
    logs[0] = 0.0
    mine[bk.TOKENS], vector.gap[b] = tokens, gap
    return reward


@njit(cache=True)
def _world(vector, b):
    return vector.worlds[b * vector.order.shape[1] + vector.book[b, bk.EPISODE]]


@njit(cache=True)
def _begin(vector, b):
    """The slot begins the next episode of its order and comes to its first decision."""
    mine = vector.book[b]
    mine[bk.EPISODE] = vector.order[b, mine[bk.PLAYED] % vector.order.shape[1]]
    mine[bk.PLAYED] += 1
    image = vector.images[mine[bk.EPISODE]]
    vector.memory[b, :len(image)] = image
    mine[bk.DECISIONS], mine[bk.INVALID], mine[bk.TOKENS], mine[bk.DONE] = 0, 0, 0, 0
    vector.gap[b], vector.logs[0], vector.victims_when[b, 0] = 0.0, 0.0, np.nan
    vector.seen[b] = 0
    vector.live[b] = 0.0
    world = _world(vector, b)
    mine[bk.OVER] = not _play_on(vector, world, b, np.int64(-1))
    _reward(vector, world, b)  # what came before the first decision is nobody's doing,
    vector.live[b, cs.EARLIER] = vector.costs[b, bk.SESSION_S]  # but this is told, so that the sum is of whole times


def _step(vector, actions, what):
    """Each slot, as `what` says, takes its action and plays on to its next decision, or begins an episode, or is left
    alone; then it writes what it sees."""
    mode, limit = vector.rules[bk.MODE], vector.rules[bk.MAX_DECISIONS]
    for b in range(len(actions)):
        if what[b] == bk.LEAVE:
            continue
        mine = vector.book[b]
        if what[b] == bk.SHOW:
            if mine[bk.DECISION] == CHOOSE:
                list_waiting(_world(vector, b), queue_of(vector, b))
            show(vector, _world(vector, b), b, mine[bk.DECISION] == ENDED, vector.obs[b], vector.mask[b])
            continue
        vector.reward[b] = 0.0
        vector.terminated[b] = vector.truncated[b] = False
        if what[b] == bk.BEGIN or mine[bk.OVER] == 1:
            _begin(vector, b)
            show(vector, _world(vector, b), b, mine[bk.OVER] == 1, vector.obs[b], vector.mask[b])
            continue
        action, world = actions[b], _world(vector, b)
        if not (0 <= action < vector.mask.shape[1] and vector.mask[b, action]):
            action = np.int64(0)
            mine[bk.INVALID] += 1
        over = not _play_on(vector, world, b, action)
        mine[bk.DECISIONS] += 1
        vector.reward[b] = _reward(vector, world, b)
        vector.terminated[b] = over
        vector.truncated[b] = not over and 0 < limit <= mine[bk.DECISIONS]
        if over or vector.truncated[b]:
            if mode == bk.SAME_STEP:
                before, mine[bk.ROWS] = mine[bk.ROWS], 0
                vector.final_obs[b] = 0.0
                show(vector, world, b, over, vector.final_obs[b], vector.final_mask[b])
                vector.final_book[b] = mine
                vector.final_costs[b] = vector.costs[b]
                mine[bk.ROWS] = before
                _begin(vector, b)
                world, over = _world(vector, b), mine[bk.OVER] == 1
            else:
                mine[bk.OVER] = 1
        show(vector, world, b, over, vector.obs[b], vector.mask[b])


class SlotState(NamedTuple):
    """Where a slot was when it was cloned."""

    runner: Any
    episode: int
    memory: NDArray[np.uint8]
    rows: tuple[NDArray[Any], ...]
    """Of the fields `closed_slots.STATE`."""


class ClosedRunner:
    """B slots over a pool of episodes; `slots` holds what `step` and `reset` write.

    policies decide what the agent does not. pool: worlds as `cluster.make_fresh` makes them, for one configuration.
    threads share the slots; what happens does not depend on their number.
    """

    def __init__(self, slots: cs.Slots, pool: list[Template], policies: PolicySet, threads: int = 1) -> None:
        self.slots, kind, self._memory = slots, int(slots.rules[cs.KIND]), memory(
            len(slots.book), max(len(t.image) for t in pool))
        self._worlds, self._pool = [t.on(stretch) for stretch in self._memory for t in pool], pool
        self._cuts, self._threads, images = cuts(len(slots.book), threads), SlotThreads(), List([t.image for t in pool])
        self._vectors, self._kept = [], []
        for first, stop in self._cuts:
            policy_refs = refs_of(policies)
            worlds = List([world_ref(w, policy_refs) for w in self._worlds[first * len(pool):stop * len(pool)]])
            loop = compiled(run_on.py_func, (worlds[0], PAUSES[kind], 0))
            mine = slots if len(self._cuts) == 1 else cs.part_of(slots, first, stop)
            args = (loop, PAUSES[kind], worlds, images, self._memory[first:stop], mine)
            self._kept.append((args, policy_refs))  # compiled code owns none of their arrays
            self._vectors.append(compiled(cs.vector_ref, args, (), {0: function_type(loop)})(*args))
        self.policy_refs = policy_refs
        """Of the last thread."""
        self._all, self._none = np.full(len(slots.book), bk.STEP), np.zeros(len(slots.book), np.int64)
        self._step = entry_point(compiled(_step, (self._vectors[0], self._none, self._all), nogil=True))

    def step(self, actions: NDArray[np.int64]) -> None:
        """Take actions, (B,) rows; one that is masked counts as invalid and becomes row 0."""
        self._play(actions, self._all)

    def reset(self, which: NDArray[np.bool_]) -> None:
        """Begin the next episode in the slots that `which` (B,) marks."""
        self._play(self._none, np.where(which, bk.BEGIN, bk.LEAVE))

    def _play(self, actions: NDArray[np.int64], what: NDArray[np.int64]) -> None:
        if len(self._vectors) == 1:
            self._step(self._vectors[0], actions, what)
            return
        self._threads.run([partial(self._step, vector, actions[a:b], what[a:b])
                           for vector, (a, b) in zip(self._vectors, self._cuts, strict=True)])

    def world(self, b: int) -> st.World:
        """The world that slot b plays in."""
        return self._worlds[b * len(self._pool) + int(self.slots.book[b, bk.EPISODE])]

    def clone(self, b: int) -> SlotState:
        """Copy slot b: its world, which is one stretch of memory, and what it shows."""
        episode = int(self.slots.book[b, bk.EPISODE])
        return SlotState(self, episode, self._memory[b, :len(self._pool[episode].image)].copy(),
                         tuple(getattr(self.slots, name)[b].copy() for name in cs.STATE))

    def restore(self, b: int, state: SlotState) -> None:
        """Put slot b where the one was that was cloned, of this runner; it plays the pool on in its own order."""
        played = self.slots.book[b, bk.PLAYED]
        self._memory[b, :len(state.memory)] = state.memory
        for name, kept in zip(cs.STATE, state.rows, strict=True):
            getattr(self.slots, name)[b] = kept
        self.slots.book[b, bk.PLAYED] = played
        what = np.full(len(self.slots.book), bk.LEAVE)
        what[b] = bk.SHOW
        self._play(self._none, what)
