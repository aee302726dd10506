"""MaskablePPO on the environments: what the actors' logits mean, a toy with a known answer, export and the script."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.errors import UserError
from saga_rl.learn.network import RowNet
from saga_rl.learn.online.actors import FRESH, actor_of, load_start
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, load_checkpoint, load_policy

pytest.importorskip("sb3_contrib")

from saga_rl.learn.online.sb3 import HeldNet, JointNet, RowPolicy, SchedulerNet
from saga_rl.policies.base import DECISIONS
from saga_rl.runtime.config.settings import policies_of
from saga_rl.sim.stepping.closed_rows import KINDS

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("training_finetune", ROOT / "training" / "finetune.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_trace(generate("webarena", 5, sessions=6, rate_per_min=60.0, max_context=16_000), folder / "t.parquet")
    return folder


def tune(work: Path, name: str, env: str, start: str | Path = FRESH, **options: Any) -> Path:
    rest: dict[str, Any] = {"population": 0 if env == "placement" else 4, "steps": 64, "rollout": 32, "max_rows": 6,
                            "kv_tokens": "40000", "wandb": "disabled", "workers": 2 if env == "placement" else 0}
    script().main(Path(start), [work / "t.parquet"], work / name, env=env, **{**rest, **options})
    return work / name


def test_a_held_request_has_logit_0() -> None:
    net = RowNet(3)
    x = torch.randn(5, 2, 3)
    logits = HeldNet(net)(x)
    torch.testing.assert_close(logits[:, 0], net(x[:, 0]))
    assert not logits[:, 1].any()


def test_joint_logits_follow_their_rows_and_ignore_padding() -> None:
    torch.manual_seed(0)
    net = JointNet(RowNet(3), RowNet(2))
    x = torch.randn(4, 6, 5)
    x[:, 3:] = 0  # two rows of padding, and the row that means nobody
    order = torch.tensor([2, 0, 1, 3, 4, 5])
    torch.testing.assert_close(net(x[:, order])[:, :3], net(x)[:, order][:, :3])
    alone = torch.cat([x[:, :3], x[:, -1:]], dim=1)
    torch.testing.assert_close(net(alone)[:, :3], net(x)[:, :3])
    assert not net(x)[:, -1].any()
    chances = torch.softmax(net(x)[:, :3] - net.admission(x[:, :3, 3:]), dim=1)
    torch.testing.assert_close(chances, torch.softmax(net.ordering(x[:, :3, :3]), dim=1))


def test_a_schedulers_logits_are_those_of_the_decision_at_hand() -> None:
    torch.manual_seed(0)
    net = SchedulerNet(RowNet(4), RowNet(3), RowNet(2), RowNet(5))
    rows = torch.randn(6, 7, 5)
    rows[:, -1] = 0  # the row that means nobody
    for kind, want in enumerate((net.placement(rows[..., :4]), JointNet(net.ordering, net.admission)(rows),
                                 net.eviction(rows))):
        one = torch.zeros(6, 7, KINDS)
        one[..., kind] = 1
        one[:, 4:-1] = 0  # masked rows say nothing
        torch.testing.assert_close(net(torch.cat([one, rows], dim=-1)), want)


class OldestIfItFits(gym.Env):
    """One decision an episode. Right: the row whose first feature is largest, or nobody if its second is below 0."""

    observation_space = gym.spaces.Box(-10, 10, (4, 2), np.float32)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rows = np.zeros((4, 2), np.float32)
        self.rows[:3] = self.np_random.uniform(-2, 2, (3, 2))
        return self.rows, {}

    def step(self, action):
        first = int(self.rows[:3, 0].argmax())
        right = first if self.rows[first, 1] > 0 else 3
        return self.rows, float(action == right), True, False, {}

    def action_masks(self):
        return np.ones(4, bool)


def test_order_and_admission_learn_together_what_is_right() -> None:
    from sb3_contrib import MaskablePPO

    torch.manual_seed(0)
    net = JointNet(RowNet(1), RowNet(1))
    model = MaskablePPO(RowPolicy, OldestIfItFits(), seed=0, device="cpu", n_steps=256, batch_size=128, gamma=0.0,
                        n_epochs=6, learning_rate=1e-2, policy_kwargs={"row_net": net})
    model.learn(2560)
    rows = torch.tensor(np.random.default_rng(9).uniform(-2, 2, (500, 3, 2)), dtype=torch.float32)
    first = rows[..., 0].argmax(dim=1)
    picked = rows[torch.arange(500), first]
    with torch.no_grad():
        assert (net.ordering(rows[..., :1]).argmax(dim=1) == first).float().mean() > 0.9
        assert ((net.admission(picked[:, 1:]) > 0) == (picked[:, 1] > 0)).float().mean() > 0.9


@pytest.mark.parametrize("env", ["eviction", "placement", "ordering", "admission"])
def test_every_decision_from_fresh_weights_and_on(env: str, work: Path) -> None:
    first = tune(work, f"{env}-1", env)
    before = load_checkpoint(first)
    assert before.decision == env and "fresh weights" in before.card
    assert ("eviction policy: it scores" in before.card) == (env == "eviction")
    after = load_checkpoint(tune(work, f"{env}-2", env, first))
    assert before.sha256[:12] in after.card and after.others == before.others
    assert any((a != b).any() for (a, _), (b, _) in zip(after.layers, before.layers, strict=True))


def test_joint_writes_two_that_name_each_other(work: Path) -> None:
    out = tune(work, "joint-1", "joint")
    order, admit = load_checkpoint(out / "ordering"), load_checkpoint(out / "admission")
    assert order.others["admission"] == "learned:../admission"
    assert order.policies().admission.params.tolist() == admit.policy().params.tolist()
    assert admit.policies().ordering.params.tolist() == order.policy().params.tolist()
    again = tune(work, "joint-2", "joint")
    for decision in ("ordering", "admission"):
        assert load_checkpoint(again / decision).sha256 == load_checkpoint(out / decision).sha256, "the seed fixes the weights"
    further = tune(work, "joint-3", "joint", out)
    assert load_checkpoint(further / "ordering").sha256 != order.sha256
    assert order.sha256[:12] in load_checkpoint(further / "admission").card


@pytest.mark.parametrize("envs", [0, 2])
def test_all_decisions_are_trained_together_and_serve_as_one_policy(work: Path, envs: int) -> None:
    out = tune(work, f"scheduler-{envs}", "scheduler", envs=envs, population=8)
    served = policies_of(str(out))
    for decision in DECISIONS:
        mine = load_checkpoint(out / decision)
        assert mine.others == {other: f"learned:../{other}" for other in DECISIONS if other != decision}
        assert getattr(served, decision).params.tolist() == mine.policy().params.tolist()
    again = tune(work, f"scheduler-{envs}-again", "scheduler", envs=envs, population=8)
    assert all(load_checkpoint(again / s).sha256 == load_checkpoint(out / s).sha256 for s in DECISIONS)
    further = tune(work, f"scheduler-{envs}-further", "scheduler", out, envs=envs, population=8)
    moved = [decision for decision in DECISIONS if load_checkpoint(further / decision).sha256 != load_checkpoint(out / decision).sha256]
    assert {"ordering", "admission", "placement"} <= set(moved)


def test_what_is_served_is_what_was_trained(work: Path) -> None:
    """An exported order scores the lowest first, an admission lets in above 0; read back, the actor is the same."""
    out = work / "joint-1"
    if not out.exists():
        tune(work, "joint-1", "joint")
    net = actor_of(load_start(out, "joint", ""))
    rng = np.random.default_rng(0)
    for decision, sign in (("ordering", -1.0), ("admission", 1.0)):
        policy = load_policy(str(out / decision), decision)
        rows = rng.uniform(0, 3, (20, len(LEARNED_FEATURES[decision])))
        scratch = np.zeros(policy.scratch)
        served = [policy.score(row, policy.params, scratch) for row in rows]
        with torch.no_grad():
            trained = getattr(net, decision)(torch.tensor(rows, dtype=torch.float32)).numpy()
        np.testing.assert_allclose(served, sign * trained, atol=1e-5)


def test_mistakes_are_named(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ordering"):
        tune(work, "x", "orderin")
    with pytest.raises(UserError, match="no such checkpoint"):
        tune(work, "x", "joint", tmp_path)
    with pytest.raises(UserError, match="saga"):
        tune(work, "x", "ordering", policies="sage")
    with pytest.raises(UserError, match="reward"):
        tune(work, "x", "ordering", reward="speed")
    assert not (work / "x").exists()
