"""Many open-loop replays stepped in one compiled call: the loops of the native vector environment.

Every slot plays an episode from a common pool with the same code as `stepper.EvictionStepper`. A slot's memory is made
once, for the largest episode of the pool, and wiped when an episode begins; script and tree belong to the episode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.experimental import structref
from numba.typed import List
from numpy.typing import NDArray

from saga_rl.policies.base import Policy
from saga_rl.policies.features import EVICTION
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cache.pool import Tree
from saga_rl.sim.compiled.jit import compiled
from saga_rl.sim.compiled.refs import pool_ref, tables_ref, tree_ref, unowned
from saga_rl.sim.openloop.replay import RECOMPUTED, Play, Work, make_play
from saga_rl.sim.openloop.script import Prepared, Script
from saga_rl.sim.stepping import replay_stepper as sp

# columns of Slots.book
EPISODE, PLAYED, OVER, ROWS, DECISIONS, INVALID, TOKENS = range(7)
BOOK = 7
# autoreset
NEXT_STEP, SAME_STEP, BY_HAND = range(3)
# Slots.rules
MODE, MAX_DECISIONS, END_HINT = range(3)


@structref.register
class ScriptType(types.StructRef):
    pass


@structref.register
class ReplayWorkType(types.StructRef):
    pass


@structref.register
class TurnType(types.StructRef):
    pass


@structref.register
class PlayType(types.StructRef):
    pass


class ScriptRef(structref.StructRefProxy):
    pass


class ReplayWorkRef(structref.StructRefProxy):
    pass


class TurnRef(structref.StructRefProxy):
    pass


class PlayRef(structref.StructRefProxy):
    pass


structref.define_proxy(ScriptRef, ScriptType, list(Script._fields))
structref.define_proxy(ReplayWorkRef, ReplayWorkType, list(Work._fields))
structref.define_proxy(TurnRef, TurnType, list(sp.Turn._fields))
structref.define_proxy(PlayRef, PlayType, [*Play._fields, "turn"])


class Slots(NamedTuple):
    """What a step reads and writes; B slots, R rows, F features."""

    book: NDArray[np.int64]
    """(B, BOOK). EPISODE: which of the pool; PLAYED: episodes begun; OVER: 1 = the episode has ended; ROWS: candidates
    on offer; DECISIONS, INVALID, TOKENS: of this episode."""
    order: NDArray[np.int64]
    """(B, episodes) the order in which a slot plays the pool, round and round."""
    obs: NDArray[np.float32]
    """(B, R, F)"""
    mask: NDArray[np.bool_]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_obs: NDArray[np.float32]
    """(B, R, F) the last observation of episodes that ended in this step, SAME_STEP only."""
    final_mask: NDArray[np.bool_]
    final_book: NDArray[np.int64]
    rules: NDArray[np.int64]
    """MODE, MAX_DECISIONS (0 = no limit), END_HINT."""
    real: NDArray[np.float64]
    """(1,) expiry, s."""


def make_slots(slots: int, rows: int, features: int, episodes: int, mode: int, max_decisions: int, end_hint: bool,
               expiry_s: float) -> Slots:
    def of(kind: type, *shape: int) -> NDArray[Any]:
        return np.zeros((slots, *shape), kind)

    return Slots(of(np.int64, BOOK), of(np.int64, episodes), of(np.float32, rows, features), of(np.bool_, rows),
                 of(np.float64), of(np.bool_), of(np.bool_), of(np.float32, rows, features), of(np.bool_, rows),
                 of(np.int64, BOOK), np.array([mode, max_decisions, end_hint], np.int64), np.array([expiry_s]))


def _ref(play, turn):
    """One pointer for a slot or an episode; the caller keeps the arrays."""
    p, x = unowned(play), unowned(turn)
    s, w = p.script, p.work
    return PlayRef(ScriptRef(s.event, s.time, s.after, s.info, s.who, s.slack, s.block), tree_ref(p.tree),
                   pool_ref(p.pool), p.chains, tables_ref(p.tables), p.g,
                   ReplayWorkRef(w.run, w.idle_chain, w.idle_since, w.begin, w.tally, w.future), p.next_use,
                   TurnRef(x.at, x.offer, x.rows))


@njit(cache=True)
def _begin(game, episode, fresh):
    """Wipe what the slot's last episode left, and take the episode's script and tree."""
    s, t, p, old, w = episode.script, episode.tree, game.pool, fresh.pool, game.work
    game.script, game.tree = s, t
    segs, ids, chains = len(t.parent), episode.pool.meta[kv.IDS], len(episode.chains)
    p.n[:] = episode.pool.n
    p.meta[:] = episode.pool.meta
    p.res[:ids] = old.res[:ids]
    p.ref[:ids] = old.ref[:ids]
    p.kids[:ids] = old.kids[:ids]
    p.last[:ids] = old.last[:ids]
    p.seq[:ids] = old.seq[:ids]
    p.owner[:ids] = old.owner[:ids]
    p.user[:ids] = old.user[:ids]
    p.slot[:ids] = old.slot[:ids]
    p.owned[:ids] = old.owned[:ids]
    p.ever[:segs] = 0
    game.chains[:chains] = fresh.chains[:chains]
    a, b = game.tables, fresh.tables
    a.hist[:] = b.hist
    a.above[:] = b.above
    a.seconds_above[:] = b.seconds_above
    a.ring[:] = b.ring
    a.returns[:] = b.returns
    a.ends[:] = b.ends
    a.obs[:] = b.obs
    a.p95[:] = b.p95
    a.types[:] = b.types
    a.calls[:] = b.calls
    game.g[:] = fresh.g
    w.run[:len(s.info)] = 0
    w.begin[:len(s.who)] = np.nan
    w.tally[:] = 0
    w.future[:segs] = np.inf
    game.turn.at[:] = fresh.turn.at


@njit(cache=True)
def _restart(game, episodes, fresh, z, b, row):
    """Slot b begins the next episode of its order and comes to its first decision."""
    mine = z.book[b]
    mine[EPISODE] = z.order[b, mine[PLAYED] % z.order.shape[1]]
    mine[PLAYED] += 1
    _begin(game, episodes[mine[EPISODE]], fresh)
    sp.play_on(game, game.turn, np.int64(-1), z.rules[END_HINT] == 1, z.real[0], row)
    mine[OVER], mine[DECISIONS], mine[INVALID] = 0, 0, 0
    mine[TOKENS] = game.work.tally[RECOMPUTED]


@njit(cache=True)
def _show(game, obs, mask, mine):
    """Write the rows on offer, and wipe those that are left of the decision before."""
    n, offer, rows = game.turn.at[sp.OFFERED], game.turn.offer, game.turn.rows
    for i in range(n):
        seg = offer[i]
        for k in range(obs.shape[1]):
            obs[i, k] = rows[seg, k]
        mask[i] = True
    for i in range(n, mine[ROWS]):
        obs[i, :] = 0.0
        mask[i] = False
    mine[ROWS] = n


def _step(games, episodes, fresh, slots, actions, row):
    """Every slot takes its action, plays on to its next decision and writes what it sees."""
    z = unowned(slots)
    mode, limit = z.rules[MODE], z.rules[MAX_DECISIONS]
    for b in range(len(actions)):
        game, mine = games[b], z.book[b]
        z.reward[b] = 0.0
        z.terminated[b] = z.truncated[b] = False
        if mine[OVER] == 1:
            _restart(game, episodes, fresh, z, b, row)
            _show(game, z.obs[b], z.mask[b], mine)
            continue
        action = actions[b]
        if not 0 <= action < mine[ROWS]:
            action = np.int64(0)  # LRU's choice: rows are in its order
            mine[INVALID] += 1
        pending = sp.play_on(game, game.turn, action, z.rules[END_HINT] == 1, z.real[0], row)
        mine[DECISIONS] += 1
        tokens = game.work.tally[RECOMPUTED]
        z.reward[b] = (mine[TOKENS] - tokens) / 1000.0
        mine[TOKENS] = tokens
        z.terminated[b] = not pending
        z.truncated[b] = pending and 0 < limit <= mine[DECISIONS]
        over = z.terminated[b] or z.truncated[b]
        if over and mode == SAME_STEP:
            before = mine[ROWS]
            z.final_obs[b] = 0.0
            z.final_mask[b] = False
            mine[ROWS] = 0
            _show(game, z.final_obs[b], z.final_mask[b], mine)
            z.final_book[b] = mine
            mine[ROWS] = before
            _restart(game, episodes, fresh, z, b, row)
        elif over:
            mine[OVER] = 1
        _show(game, z.obs[b], z.mask[b], mine)


def _reset(games, episodes, fresh, slots, which, row):
    """The slots that `which` marks begin their next episode."""
    z = unowned(slots)
    for b in range(len(which)):
        if which[b]:
            z.terminated[b] = z.truncated[b] = False
            z.reward[b] = 0.0
            _restart(games[b], episodes, fresh, z, b, row)
            _show(games[b], z.obs[b], z.mask[b], z.book[b])


class Fleet:
    """B slots over a pool of prepared episodes, which share pool size, tools and agent types.

    policy: its traits say which columns are made (`features.make_g`). `slots` holds what `step` and `reset` write.
    """

    def __init__(self, slots: Slots, pool: list[Prepared], policy: Policy) -> None:
        self.slots, rows = slots, slots.obs.shape[1]
        largest = largest_of(pool)
        turns = [sp.make_turn(0 if i < len(pool) else len(largest.tree.parent), rows, np.float32, slots.obs.shape[2])
                 for i in range(len(pool) + len(slots.book) + 1)]
        plays = [make_play(p, policy) for p in (*pool, *[largest] * (len(slots.book) + 1))]
        self._kept = (plays, turns)  # compiled code owns none of their arrays
        refs = []
        for play, turn in zip(plays, turns, strict=True):
            refs.append(compiled(_ref, (play, turn))(play, turn))
        self._episodes, self._games = List(refs[:len(pool)]), List(refs[len(pool):-1])
        fixed = (self._games, self._episodes, refs[-1], slots)
        actions, which, row = np.zeros(len(slots.book), np.int64), np.zeros(len(slots.book), np.bool_), np.zeros(
            len(EVICTION))
        self._step = sp.entry_point(compiled(_step, (*fixed, actions, row)))
        self._reset = sp.entry_point(compiled(_reset, (*fixed, which, row)))
        self._fixed, self._row = fixed, row

    def step(self, actions: NDArray[np.int64]) -> None:
        """actions: (B,) rows; a row that is not on offer counts as invalid and becomes LRU's."""
        self._step(*self._fixed, actions, self._row)

    def reset(self, which: NDArray[np.bool_]) -> None:
        self._reset(*self._fixed, which, self._row)


def largest_of(pool: list[Prepared]) -> Prepared:
    """An empty episode as large as the largest of the pool in every respect."""
    first = pool[0]
    segments = max(len(p.tree.parent) for p in pool)
    events, steps, sessions = (max(len(getattr(p.script, name)) for p in pool) for name in ("time", "info", "who"))
    script = Script(np.zeros((events, 7), np.int64), np.zeros(events), np.zeros(1), np.zeros((steps, 5), np.int64),
                    np.zeros((sessions, 2), np.int64), np.zeros(sessions), first.script.block)
    tree = Tree(*(np.zeros(segments, a.dtype) for a in first.tree))
    return replace(first, script=script, tree=tree, n_chains=max(p.n_chains for p in pool))
