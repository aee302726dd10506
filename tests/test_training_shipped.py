"""The shipped checkpoints: they load with the feature code beside them, name no machine, and say how they were made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.policies.features import COLUMNS, EVICTION
from saga_rl.policies.learned.checkpoint import MANIFEST, load_checkpoint
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig

ROOT = Path(__file__).resolve().parents[1] / "checkpoints"
SHIPPED = sorted(p.parent.relative_to(ROOT).as_posix() for p in ROOT.rglob(MANIFEST))


def test_what_is_shipped():
    joint = [f"{name}/{decision}" for name in ("joint", "joint-hidden") for decision in ("admission", "eviction", "ordering")]
    assert sorted(["eviction", *joint]) == SHIPPED


@pytest.fixture(params=SHIPPED)
def shipped(request):
    return load_checkpoint(ROOT / request.param)


def test_it_loads_and_scores(shipped):
    policy = shipped.policy()
    rows = np.random.default_rng(0).random((50, COLUMNS[policy.decision]))
    if policy.decision == "eviction":
        rows[:, [EVICTION.index(k) for k in ("waiting", "ended", "tokens")]] = 0.0  # settled outside
    scores = [policy.score(row, policy.params, np.zeros(policy.scratch)) for row in rows]
    assert np.isfinite(scores).all() and len(set(scores)) > 40


def test_its_card_can_be_followed(shipped):
    assert "checkpoints/reproduce.sh" in shipped.card and (ROOT / "reproduce.sh").is_file()
    text = shipped.card + (shipped.folder / MANIFEST).read_text()
    assert not re.search(r"(^|[\s'\"])/\w", text), "no path of a machine"


def test_reports_name_no_machine():
    for page in ROOT.glob("*.md"):
        assert not re.search(r"(^|[\s'\"])/\w", page.read_text()), page


@pytest.mark.parametrize("name", ["joint", "joint-hidden"])
def test_the_joint_sets_serve_a_trace_to_its_end(name):
    policies = preset(str(ROOT / name))
    assert [policies.names()[s] for s in ("eviction", "ordering", "admission")] == ["learned"] * 3
    trace = generate("webarena", 5, sessions=12, max_context=32_768)
    result = simulate(trace, SimConfig(kv_tokens=80_000, population=6), policies, slo=False).metrics
    assert result["sessions_done"] == 12 and result["evictions"] > 0
