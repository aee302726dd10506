"""What the loops of the native closed-loop vectors read and write, and the one pointer under which they have it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.experimental import structref
from numpy.typing import NDArray

from saga_rl.policies.features import ADMISSION, EVICTION, ORDERING
from saga_rl.sim.compiled.refs import by_name, unowned
from saga_rl.sim.compiled.unowned import uncounted
from saga_rl.sim.stepping.book import BOOK, COSTS, RULES

# Slots.rules, after those of `sim.stepping.book`
KIND, REWARD, EVICT_BLOCKS = range(RULES, RULES + 3)
# values of KIND
PLACEMENT, ORDER, ADMIT, JOINT, SCHEDULER = range(5)
# values of REWARD
BY_TCT, BY_TOKENS, DENSE = range(3)
# columns of Slots.live
SINCE, ALIVE, BEGUN, ENDED_S, N_ENDED, EARLIER = range(6)
LIVE = 6
# Slots.real
P95_WEIGHT, FAIRNESS_WEIGHT, LOW, HIGH = range(4)


class Slots(NamedTuple):
    """B slots, R rows, F features, S sessions of the longest episode. Times are seconds, logs of them natural."""

    book: NDArray[np.int64]
    """(B, BOOK) see `sim.stepping.book`; DECISION: why the run was paused, see `loop.run_on`."""
    order: NDArray[np.int64]
    """(B, episodes) the order in which a slot plays the pool, round and round."""
    costs: NDArray[np.float64]
    """(B, COSTS) since the decision before."""
    gap: NDArray[np.float64]
    """(B,) the episode's largest service gap at the last reward, tokens."""
    seen: NDArray[np.int8]
    """(B, S) 1 = the session's end was noted."""
    ended: NDArray[np.float64]
    """(B, S) log completion times of the sessions that ended, ascending."""
    live: NDArray[np.float64]
    """(B, LIVE) SINCE: when the last reward was made, s; ALIVE: sessions then; BEGUN: those that had begun; N_ENDED:
    those that ended since, ENDED_S: the sum of (end - SINCE), s; EARLIER: seconds that sessions lived before the first
    decision, until its reward is made."""
    shown: NDArray[np.int64]
    """(B, 3) `waiting_rows.Queue.n`."""
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
    """(S + 1,) [how many, log completion times of sessions that ended since the last reward, ...]."""
    rules: NDArray[np.int64]
    """See `sim.stepping.book`, and KIND; REWARD; EVICT_BLOCKS: that an eviction takes at least."""
    real: NDArray[np.float64]
    """P95_WEIGHT, FAIRNESS_WEIGHT, see `env.rewards`; LOW, HIGH: bounds of an observation."""


STATE = ("book", "costs", "gap", "seen", "ended", "live", "shown", "place", "obs", "mask", "reward", "terminated",
         "truncated", "victims_at", "victims_when", "offer", "victim_rows")
"""The fields that say, with a slot's memory, where it is."""


def make_slots(slots: int, shape: tuple[int, ...], episodes: int, sessions: int, segments: int,
               rules: tuple[int, int, int, int, int], real: tuple[float, float, float, float]) -> Slots:
    """Make them for observations of `shape` (R, F); sessions, segments: the most in an episode; rules (MODE,
    MAX_DECISIONS, KIND, REWARD, EVICT_BLOCKS) and real in the order of their columns."""
    def of(kind: type, *shape: int) -> NDArray[Any]:
        return np.zeros((slots, *shape), kind)

    rows, kind = shape[0], rules[KIND]
    offered = rows - (kind in (ADMIT, JOINT, SCHEDULER))
    segments *= kind == SCHEDULER
    return Slots(
        book=of(np.int64, BOOK), order=of(np.int64, episodes), costs=of(np.float64, COSTS), gap=of(np.float64),
        seen=of(np.int8, sessions), ended=of(np.float64, sessions), live=of(np.float64, LIVE), shown=of(np.int64, 3),
        place=of(np.int64, offered), obs=of(np.float32, *shape), mask=of(np.bool_, rows), reward=of(np.float64),
        terminated=of(np.bool_), truncated=of(np.bool_), final_obs=of(np.float32, *shape),
        final_mask=of(np.bool_, rows), final_book=of(np.int64, BOOK), final_costs=of(np.float64, COSTS),
        victims_at=of(np.int64, 4), victims_when=of(np.float64, 1), offer=of(np.int32, rows),
        victim_rows=of(np.float64, segments, len(EVICTION)), key=np.zeros(offered),
        order_rows=np.zeros((offered, len(ORDERING))), admit_rows=np.zeros((offered, len(ADMISSION))),
        logs=np.zeros(sessions + 1), rules=np.array(rules, np.int64), real=np.array(real))


WORK = ("key", "order_rows", "admit_rows", "logs")
"""Fields that are work space of whoever plays."""


def part_of(slots: Slots, first: int, stop: int) -> Slots:
    """Give one of several threads its slots, first..stop - 1, with work space of its own."""
    def mine(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name in ("rules", "real"):
            return array
        return array.copy() if name in WORK else array[first:stop]

    return Slots(**{name: mine(name, getattr(slots, name)) for name in Slots._fields})


@uncounted
class VectorType(types.StructRef):
    pass


class VectorRef(structref.StructRefProxy):
    """The slots and the worlds that are played: `worlds[b * episodes + e]` is episode e in the memory of slot b,
    `images[e]` what that memory holds when the episode begins (`world_memory`)."""


BEFORE = ("run_on", "pause", "worlds", "images", "memory")
structref.define_proxy(VectorRef, VectorType, [*BEFORE, *Slots._fields])
_vector = by_name(VectorRef, Slots._fields, "z", BEFORE)


def vector_ref(run_on, pause, worlds, images, memory, slots):
    """Put everything under one pointer: Python hands a step two arguments instead of fifty. The caller keeps the
    arrays."""
    return _vector(run_on, pause, worlds, images, unowned(memory), unowned(slots))
