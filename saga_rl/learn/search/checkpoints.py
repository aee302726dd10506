"""What a search starts from and leaves behind: the rules found by hand, an earlier search's checkpoints, new ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.errors import UserError
from saga_rl.learn.search.card import copied_card, search_card
from saga_rl.learn.search.cma_es import Found, SearchConfig
from saga_rl.learn.search.parameter_vector import ParameterVector, scales
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.learned.checkpoint import load_checkpoint, save_checkpoint
from saga_rl.policies.presets import PRESETS
from saga_rl.provenance import provenance


def by_hand() -> dict[str, str]:
    """By decision, the spec of the best rule found by hand where ends are not announced. Decisions that are not
    searched are the same in candidates and reference."""
    return PRESETS["saga+"] | {k: PRESETS["likely"][k] for k in ("admission", "eviction")}


def left_to_search(start: str | Path, searched: Sequence[str], units: int, others: dict[str, str]
                   ) -> tuple[list[str], dict[str, str]]:
    """(what is left to search, the others): a decision whose checkpoint below `start` was trained, not searched, is not
    searched now, either, and serves as it is there. Raises `UserError` where nothing is left."""
    left, kept = [], dict(others)
    for decision in searched:
        if ParameterVector((decision,), units).fits(Path(start) / decision):  # type: ignore[arg-type]
            left.append(decision)
        else:
            kept[decision] = f"learned:{Path(start) / decision}"
    if not left:
        raise UserError("--start", f"{start} leaves nothing to search", "name what training/search.py wrote")
    return left, kept


def save_set(out: Path, found: Found, config: SearchConfig, facts: list[str], note: str, seed: int) -> None:
    """A checkpoint for each searched decision, which name one another, and a copy of every learned one beside
    them."""
    vector = config.vector()
    out.mkdir(exist_ok=True)
    meta: dict[str, Any] = {
        "algorithm": "CMA-ES on whole simulated runs", "config": {**vars(config), "decisions": list(config.decisions)},
        "arenas": facts, "validation_cost": found.validation_cost, "searched_cost": found.searched_cost,
        "start_cost": found.start_cost, "runs": found.runs,
        "reference": dict(config.reference), "curve": found.curve, "note": note,
        "weights": {s: _weights(vector.features(s), vector.layers(s, found.theta)) for s in config.decisions},
        "source": provenance(seed=seed, trace=None)}
    copied = {s: spec.removeprefix("learned:") for s, spec in config.others.items() if spec.startswith("learned:")}
    copied |= dict(config.trained) if found.adopted else {}
    here = {*vector.decisions, *copied}
    for decision in DECISIONS:
        others: dict[str, str] = {o: f"learned:../{o}" if o in here else config.others[o] for o in DECISIONS
                                  if o != decision}
        if decision in copied:
            c = load_checkpoint(copied[decision])
            save_checkpoint(out / decision, decision, c.layers, c.mean, c.std, c.card +
                            copied_card(decision, meta, others), c.meta, others)
        elif decision in vector.decisions:
            features = vector.features(decision)
            save_checkpoint(out / decision, decision, vector.layers(decision, found.theta), np.zeros(len(features)),
                            scales(features), search_card(decision, meta, features, others), meta, others)


def _weights(names: tuple[str, ...], layers: list[tuple[Any, Any]]) -> dict[str, float]:
    w, b = layers[0][0][0] / scales(names), layers[-1][1][0]
    return {**{n: float(x) for n, x in zip(names, w, strict=True)}, "bias": float(b)}
