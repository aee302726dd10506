"""What the loops of the native closed-loop vectors read and write, and the one pointer under which they have it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.experimental import structref
from numpy.typing import NDArray

from saga_rl.policies.features import ADMISSION, LEARNED_EVICTION, ORDERING
from saga_rl.sim.compiled.refs import unowned
from saga_rl.sim.compiled.unowned import lending
from saga_rl.sim.stepping.replay_vector import BOOK

# columns of Slots.book: those of `sim.stepping.replay_vector`, and what follows there
DONE, DECISION, UNASKED = range(BOOK, BOOK + 3)
CLOSED_BOOK = BOOK + 3
# columns of Slots.costs
LOG_TCT, RECOMPUTED_TOKENS, GAP_TOKENS = range(3)
# Slots.rules
KIND, MODE, MAX_DECISIONS, BY_TOKENS, EVICT_BLOCKS = range(5)
# values of KIND
PLACEMENT, ORDER, ADMIT, JOINT, SCHEDULER = range(5)
# Slots.real
P95_WEIGHT, FAIRNESS_WEIGHT, LOW, HIGH = range(4)


class Slots(NamedTuple):
    """B slots, R rows, F features, S sessions of the longest episode. Times are seconds, logs of them natural."""

    book: NDArray[np.int64]
    """(B, CLOSED_BOOK). EPISODE: which of the pool; PLAYED: episodes begun; OVER: 1 = the episode has ended; ROWS: that
    are not zero; DECISIONS, INVALID, TOKENS (computed again), DONE (sessions that ended), UNASKED (blocks that the
    policy evicted, SCHEDULER only): of this episode; DECISION: why it was paused, see `loop.run_on`."""
    order: NDArray[np.int64]
    """(B, episodes) the order in which a slot plays the pool, round and round."""
    costs: NDArray[np.float64]
    """(B, 3) since the decision before."""
    gap: NDArray[np.float64]
    """(B,) the episode's largest service gap when it was last settled, tokens."""
    seen: NDArray[np.int8]
    """(B, S) 1 = the session's end was noted."""
    ended: NDArray[np.float64]
    """(B, S) log completion times of the sessions that ended, ascending."""
    shown: NDArray[np.int64]
    """(B, 3) `queue_stepper.Queue.n`."""
    place: NDArray[np.int64]
    """(B, R) `Queue.place`."""
    obs: NDArray[np.float32]
    """(B, R, F)"""
    mask: NDArray[np.bool_]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_obs: NDArray[np.float32]
    """(B, R, F) the last observation of episodes that ended in this step, SAME_STEP only, as all that is final."""
    final_mask: NDArray[np.bool_]
    final_book: NDArray[np.int64]
    final_costs: NDArray[np.float64]
    victims_at: NDArray[np.int64]
    """(B, 4), and what follows: `victims.Victims`; `victim_rows` is empty but for SCHEDULER."""
    victims_when: NDArray[np.float64]
    offer: NDArray[np.int32]
    victim_rows: NDArray[np.float64]
    key: NDArray[np.float64]
    """(R,) work space, as what follows."""
    order_rows: NDArray[np.float64]
    admit_rows: NDArray[np.float64]
    logs: NDArray[np.float64]
    """(S + 1,) [how many, log completion times of sessions that ended since the slot was settled, ...]."""
    rules: NDArray[np.int64]
    """KIND; MODE, see `sim.stepping.replay_vector`; MAX_DECISIONS, 0 = no limit; BY_TOKENS: 1 = the reward is tokens,
    not times; EVICT_BLOCKS: that an eviction takes at least."""
    real: NDArray[np.float64]
    """P95_WEIGHT, FAIRNESS_WEIGHT, see `env.rewards`; LOW, HIGH: bounds of an observation."""


def make_slots(slots: int, shape: tuple[int, ...], episodes: int, sessions: int, segments: int,
               rules: tuple[int, int, int, bool, int], real: tuple[float, float, float, float]) -> Slots:
    """shape: (R, F) of one observation; sessions, segments: the most in an episode; rules and real in the order of
    their columns."""
    def of(kind: type, *shape: int) -> NDArray[Any]:
        return np.zeros((slots, *shape), kind)

    rows = shape[0]
    offered = rows - (rules[0] in (ADMIT, JOINT, SCHEDULER))
    segments *= rules[0] == SCHEDULER
    return Slots(of(np.int64, CLOSED_BOOK), of(np.int64, episodes), of(np.float64, 3), of(np.float64),
                 of(np.int8, sessions), of(np.float64, sessions), of(np.int64, 3), of(np.int64, offered),
                 of(np.float32, *shape), of(np.bool_, rows), of(np.float64), of(np.bool_), of(np.bool_),
                 of(np.float32, *shape), of(np.bool_, rows), of(np.int64, CLOSED_BOOK), of(np.float64, 3),
                 of(np.int64, 4), of(np.float64, 1), of(np.int32, rows),
                 of(np.float64, segments, len(LEARNED_EVICTION)),
                 np.zeros(offered), np.zeros((offered, len(ORDERING))), np.zeros((offered, len(ADMISSION))),
                 np.zeros(sessions + 1), np.array(rules, np.int64), np.array(real))


@lending
class HallType(types.StructRef):
    pass


class HallRef(structref.StructRefProxy):
    """The slots, the policies, and the games that are played: `games[b * episodes + e]` is episode e in the memory of
    slot b, `images[e]` what that memory holds when the episode begins (`packing`)."""


POLICIES = tuple(f"{seam}_{what}" for seam in ("place", "order", "admit", "evict") for what in (
    "score", "params", "scratch"))
structref.define_proxy(HallRef, HallType, ["run_on", *POLICIES, "whole", "literal", "pause", "games", "images",
                                           "memory", *Slots._fields])


def hall_ref(run_on, place_score, place_params, place_scratch, order_score, order_params, order_scratch, admit_score,
             admit_params, admit_scratch, evict_score, evict_params, evict_scratch, whole, literal, pause, games,
             images, memory, slots):
    """One pointer to everything: Python hands a step two arguments instead of fifty. The caller keeps the arrays."""
    z = unowned(slots)
    return HallRef(run_on, place_score, unowned(place_params), unowned(place_scratch), order_score,
                   unowned(order_params), unowned(order_scratch), admit_score, unowned(admit_params),
                   unowned(admit_scratch), evict_score, unowned(evict_params), unowned(evict_scratch), whole, literal,
                   pause, games, images, unowned(memory), z.book, z.order, z.costs, z.gap, z.seen, z.ended, z.shown,
                   z.place, z.obs, z.mask, z.reward, z.terminated, z.truncated, z.final_obs, z.final_mask, z.final_book,
                   z.final_costs, z.victims_at, z.victims_when, z.offer, z.victim_rows, z.key,
                   z.order_rows, z.admit_rows, z.logs, z.rules, z.real)
