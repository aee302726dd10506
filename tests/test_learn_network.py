"""The row network: equivariance, a round trip through layers, and its use as an actor of MaskablePPO."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.learn.network import MIN_STD, RowNet, beside_rule, normalisation

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other


@given(st.integers(0, 10_000), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_scores_follow_their_rows(seed: int, rows: int) -> None:
    torch.manual_seed(seed)
    net = RowNet(5)
    x = torch.randn(2, rows, 5)
    order = torch.randperm(rows)
    torch.testing.assert_close(net(x[:, order]), net(x)[:, order])
    torch.testing.assert_close(net(x[0, :1]), net(x)[0, :1])  # a row's score does not depend on the others


def test_layers_rebuild_the_network() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(2.0, 3.0, (50, 7))
    net = RowNet(7, (6, 5), *normalisation(rows))
    again = RowNet.from_layers(net.layers(), net.mean.numpy(), net.std.numpy())
    x = torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(net(x), again(x))
    assert [w.shape for w, _ in net.layers()] == [(6, 7), (5, 6), (1, 5)]


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_a_network_beside_a_rule_adds_to_its_column(hidden) -> None:
    rows = np.random.default_rng(2).normal(1.0, 2.0, (40, 7))
    net = RowNet(7, hidden, *normalisation(rows))
    x = torch.tensor(rows, dtype=torch.float32)
    torch.testing.assert_close(beside_rule(net, 3, 0.4)(x), net.normal(x)[:, 3] + 0.4 * net(x))


def test_normalisation_floors_a_constant_column() -> None:
    rows = np.stack([np.full(10, 4.0), np.arange(10.0)], axis=1)
    mean, std = normalisation(rows)
    assert mean.tolist() == [4.0, 4.5]
    assert std[0] == np.float32(MIN_STD)
    assert std[1] == pytest.approx(np.arange(10.0).std())


class PickLargest(gym.Env):
    """One decision an episode; the reward is the picked row's second feature."""

    observation_space = gym.spaces.Box(-10, 10, (4, 3), np.float32)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = int(self.np_random.integers(2, 5))
        self.rows = np.zeros((4, 3), np.float32)
        self.rows[: self.n] = self.np_random.uniform(1, 3, (self.n, 3))
        return self.rows, {}

    def step(self, action):
        assert action < self.n, "the mask was not used"
        return self.rows, float(self.rows[action, 1]), True, False, {}

    def action_masks(self):
        return np.arange(4) < self.n


def test_maskable_ppo_trains_a_row_actor() -> None:
    sb3_contrib = pytest.importorskip("sb3_contrib")
    from saga_rl.learn.online.sb3 import RowPolicy

    torch.manual_seed(0)
    net = RowNet(3, (8,), np.full(3, 2.0), np.full(3, 0.5))
    model = sb3_contrib.MaskablePPO(RowPolicy, PickLargest(), n_steps=256, batch_size=64, seed=0, learning_rate=1e-2,
                                    policy_kwargs={"row_net": net}, device="cpu")
    policy = model.policy
    x = torch.rand(6, 4, 3) + 1
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        logits = policy.get_distribution(x).distribution.logits
        torch.testing.assert_close(policy.get_distribution(x[:, order]).distribution.logits, logits[:, order])
        torch.testing.assert_close(policy.predict_values(x[:, order]), policy.predict_values(x))
    before = [w.copy() for w, _ in net.layers()]
    model.learn(1024)
    assert policy.actor is net
    assert any((w != old).any() for (w, _), old in zip(net.layers(), before, strict=True))
    with torch.no_grad():
        picked = net(x).argmax(1)
    regret = (x[:, :, 1].amax(1) - x[torch.arange(6), picked, 1]).mean()
    chance = (x[:, :, 1].amax(1) - x[:, :, 1].mean(1)).mean()
    assert regret < 0.5 * chance
