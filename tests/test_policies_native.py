"""What a server calls is what the simulator calls: scores compiled for one policy are, bit for bit, those of any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saga_rl.policies.base import DECISIONS, Policy
from saga_rl.policies.batch import score_rows
from saga_rl.policies.features import COLUMNS
from saga_rl.policies.learned.native import row_scorer
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make, names

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
SHIPPED = ("eviction", "joint", "joint-hidden")


def online() -> list[Policy]:
    found = [make(decision, name) for decision in DECISIONS for name in names(decision) if name != "learned"]
    found += [getattr(preset(str(CHECKPOINTS / folder)), decision) for folder in SHIPPED for decision in DECISIONS]
    return [p for p in found if not p.oracle]


@pytest.mark.parametrize("decision", DECISIONS)
def test_scores_are_the_same_to_the_bit(decision: str) -> None:
    rng = np.random.default_rng(3)
    mine = [p for p in online() if p.decision == decision]
    assert len(mine) > 3
    for p in mine:
        rows = np.abs(rng.normal(0, 50, (300, COLUMNS[decision])))
        rows[rng.random(rows.shape) < 0.3] = 0.0
        one, other = np.zeros(300), np.zeros(300)
        for scorer, out in ((row_scorer(p.score), one), (lambda *a, p=p: score_rows(p.score, *a), other)):
            scorer(rows, 0, 300, p.params, np.zeros(max(p.scratch, 1)), out)
        assert one.tobytes() == other.tobytes(), p.name
        assert row_scorer(p.score) is row_scorer(p.score)
