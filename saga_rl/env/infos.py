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


def info_of(slots: Any) -> dict[str, Any]:
    """Tell of the only slot of a vector of one."""
    book, costs = slots.book[0].tolist(), slots.costs[0].tolist()
    return {"action_mask": slots.mask[0].astype(np.int8), "decision": DECISIONS[book[bk.DECISION]],
            **{key: book[column] for key, column in COLUMNS.items()},
            "components": dict(zip(COSTS, costs, strict=True))}


def infos_of(mask: NDArray[np.bool_], book: NDArray[np.int64], costs: NDArray[np.float64],
             which: NDArray[np.bool_]) -> dict[str, Any]:
    """Tell of all slots, in Gymnasium's form: `which` (B,) says whose are told, and stands under `_key` for each key.

    The arrays are kept: hand in copies.
    """
    infos: dict[str, Any] = {"action_mask": mask.view(np.int8), "_action_mask": which}
    for key, column in POOLED.items():
        infos[key], infos[f"_{key}"] = book[:, column], which
    words = _WORDS[book[:, bk.DECISION]]
    if not which.all():
        words[~which] = None
    infos["decision"], infos["_decision"] = words, which
    parts: dict[str, Any] = {}
    for column, key in enumerate(COSTS):
        parts[key], parts[f"_{key}"] = costs[:, column], which
    infos["components"], infos["_components"] = parts, which
    return infos
