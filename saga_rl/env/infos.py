"""Infos of the environments: the same keys for every task.

| key | meaning |
|---|---|
| `action_mask` | int8, 1 = the row may be chosen |
| `decision` | "placement", "queue" or "eviction"; "" once the episode is over |
| `decisions`, `invalid_actions` | taken in this episode, and among them those on a masked row |
| `sessions_done`, `recomputed_tokens` | so far in this episode |
| `unasked_evictions` | scheduler: blocks that went by the policy, without being asked |
| `components` | costs since the decision before, by name: `env.rewards.COSTS` |
| `pool_episode` | vectors: the episode's number in `episodes` |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.env.rewards import COSTS
from saga_rl.sim.cluster import CHOOSE, ENDED, EVICT, PLACE
from saga_rl.sim.stepping import book as bk

DECISIONS = {ENDED: "", PLACE: "placement", CHOOSE: "queue", EVICT: "eviction"}
_WORDS = np.array([DECISIONS[k] for k in range(len(DECISIONS))], object)
COLUMNS = {"decisions": bk.DECISIONS, "invalid_actions": bk.INVALID, "sessions_done": bk.DONE,
           "recomputed_tokens": bk.TOKENS, "unasked_evictions": bk.UNASKED}
POOLED = COLUMNS | {"pool_episode": bk.EPISODE}
_POOLED = [(key, f"_{key}", column) for key, column in POOLED.items()]
_PARTS = [(key, f"_{key}") for key in COSTS]


def info_of(slots: Any) -> dict[str, Any]:
    """Tell of the only slot of a vector of one."""
    book, costs = slots.book[0].tolist(), slots.costs[0].tolist()
    return {"action_mask": slots.mask[0].astype(np.int8), "decision": DECISIONS[book[bk.DECISION]],
            **{key: book[column] for key, column in COLUMNS.items()},
            "components": dict(zip(COSTS, costs, strict=True))}


def infos_of(mask: NDArray[np.bool_], book: NDArray[np.int64], costs: NDArray[np.float64],
             which: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Tell of all slots, in Gymnasium's form: `which` (B,) says whose are told (None: all), and stands under `_key` for
    each key.

    The arrays are kept: hand in copies.
    """
    columns, words = book.T, _WORDS.take(book[:, bk.DECISION])
    if which is None:
        which = np.ones(len(book), np.bool_)
    else:
        words[~which] = None
    infos: dict[str, Any] = {"action_mask": mask.view(np.int8), "_action_mask": which, "decision": words,
                             "_decision": which}
    for key, told, column in _POOLED:
        infos[key] = columns[column]
        infos[told] = which
    parts: dict[str, Any] = {}
    for (key, told), column in zip(_PARTS, costs.T, strict=True):
        parts[key] = column
        parts[told] = which
    infos["components"], infos["_components"] = parts, which
    return infos
