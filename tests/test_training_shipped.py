"""The shipped checkpoint: it loads with the feature code beside it, names no machine, and says how it was made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from saga_rl.policies.checkpoint import load_checkpoint
from saga_rl.policies.features import EVICTION
from saga_rl.policies.presets import preset

FOLDER = Path(__file__).resolve().parents[1] / "checkpoints" / "eviction"


def test_it_loads_and_scores() -> None:
    policy = preset(str(FOLDER)).eviction
    rows = np.random.default_rng(0).random((50, len(EVICTION)))
    scores = [policy.score(row, policy.params, np.zeros(policy.scratch)) for row in rows]
    assert np.isfinite(scores).all() and len(set(scores)) > 40


def test_its_card_can_be_followed() -> None:
    checkpoint = load_checkpoint(FOLDER)
    assert "checkpoints/reproduce.sh" in checkpoint.card and (FOLDER.parent / "reproduce.sh").is_file()
    text = checkpoint.card + (FOLDER / "policy.json").read_text() + (FOLDER.parent / "EVALUATION.md").read_text()
    assert not re.search(r"(^|[\s'\"])/\w", text), "no path of a machine"
