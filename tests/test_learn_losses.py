"""Losses: gradients against finite differences, known values, and a toy problem whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.learn.losses import behaviour_cloning, pair_accuracy, pairwise_ranking, top_agreement
from saga_rl.learn.network import RowNet, normalisation

INF = float("inf")
torch.set_num_threads(1)  # tiny tensors: threads only wait for each other


def batch(seed: int, b: int = 4, r: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.normal(size=(b, r)), dtype=torch.float64, requires_grad=True)
    next_use = torch.tensor(np.where(rng.random((b, r)) < 0.3, np.inf, rng.integers(0, 9, (b, r))))
    mask = torch.tensor(rng.random((b, r)) < 0.8)
    mask[:, 0] = True
    return scores, next_use, mask


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_finite_differences(seed: int) -> None:
    scores, next_use, mask = batch(seed)
    assert torch.autograd.gradcheck(lambda s: pairwise_ranking(s, next_use, mask), (scores,))
    actions = torch.zeros(len(scores), dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda s: behaviour_cloning(s, actions, mask), (scores,))


def test_ranking_loss_by_hand() -> None:
    scores = torch.tensor([[2.0, 0.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    loss = pairwise_ranking(scores, torch.tensor([[INF, 3.0, 1.0]]), mask)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-6)
    wrong = pairwise_ranking(scores, torch.tensor([[3.0, INF, 1.0]]), mask)
    assert wrong.item() == pytest.approx(np.log1p(np.exp(2.0)), rel=1e-6)


def test_rows_of_equal_next_use_make_no_pair() -> None:
    scores = torch.tensor([[2.0, -1.0]], requires_grad=True)
    loss = pairwise_ranking(scores, torch.tensor([[INF, INF]]), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None and not scores.grad.any()


def test_cloning_loss_by_hand() -> None:
    scores = torch.tensor([[1.0, 3.0, 50.0]])
    mask = torch.tensor([[True, True, False]])
    loss = behaviour_cloning(scores, torch.tensor([0]), mask)
    assert loss.item() == pytest.approx(np.log1p(np.exp(2.0)), rel=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_masked_rows_and_row_order_do_not_matter(seed: int) -> None:
    scores, next_use, mask = batch(seed)
    order = torch.tensor(np.random.default_rng(seed).permutation(scores.shape[1]))
    moved = scores.detach().clone()
    moved[~mask] = 1e3
    for metric in (pairwise_ranking, pair_accuracy, top_agreement):
        base = metric(scores, next_use, mask)
        torch.testing.assert_close(metric(moved, next_use, mask), base, equal_nan=True)
        torch.testing.assert_close(metric(scores[:, order], next_use[:, order], mask[:, order]), base, equal_nan=True)


@pytest.mark.parametrize("loss_name", ["rank", "clone"])
def test_a_toy_problem_is_learned(loss_name: str) -> None:
    """Next use is a known function of one feature among four: the network finds it on decisions it never saw."""
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (600, 6, 4)).astype(np.float32)
    next_use = torch.tensor(x[:, :, 2] ** 2)
    mask = torch.tensor(rng.random((600, 6)) < 0.9)
    mask[:, 0] = True
    best = next_use.masked_fill(~mask, -INF).argmax(1)
    torch.manual_seed(0)
    net = RowNet(4, (16, 16), *normalisation(x.reshape(-1, 4)))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    inputs = torch.tensor(x)
    for _ in range(150):
        scores = net(inputs[:500])
        loss = pairwise_ranking(scores, next_use[:500], mask[:500]) if loss_name == "rank" else behaviour_cloning(
            scores, best[:500], mask[:500])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        assert top_agreement(net(inputs[500:]), next_use[500:], mask[500:]) > 0.9
