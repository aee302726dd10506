"""Losses: gradients against finite differences, known values, and a toy problem whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.learn.network import RowNet, normalisation
from saga_rl.learn.offline.losses import (
    behaviour_cloning,
    conservative,
    expectile,
    hazard_likelihood,
    lambda_ranking,
    listwise_softmax,
    pair_accuracy,
    pairwise_ranking,
    places,
    soft_cross_entropy,
    top_agreement,
    weighted_cloning,
)

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
    weights = torch.rand(len(scores), dtype=torch.float64)
    wanted = torch.softmax(torch.randn(scores.shape, dtype=torch.float64).masked_fill(~mask, -INF), dim=1)
    for loss in (lambda s: listwise_softmax(s, next_use, mask, 0.7), lambda s: lambda_ranking(s, next_use, mask),
                 lambda s: weighted_cloning(s, actions, mask, weights), lambda s: conservative(s, actions, mask),
                 lambda s: soft_cross_entropy(s, wanted, mask), lambda s: expectile(s, 0.8)):
        assert torch.autograd.gradcheck(loss, (scores,))
    logits = torch.randn(*scores.shape, 3, dtype=torch.float64, requires_grad=True)
    bins = torch.randint(0, 4, scores.shape)
    assert torch.autograd.gradcheck(lambda x: hazard_likelihood(x, bins, mask), (logits,))


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


def test_listwise_loss_by_hand() -> None:
    """Places 1 and 0 at temperature 1: the target is the logistic of 1; an unused third row is nowhere."""
    scores, mask = torch.tensor([[2.0, 0.0, 9.0]]), torch.tensor([[True, True, False]])
    next_use = torch.tensor([[INF, 3.0, 1.0]])
    assert places(next_use, mask).tolist() == [[1.0, 0.0, 0.0]]
    p = 1 / (1 + np.exp(-1.0))
    by_hand = p * np.log1p(np.exp(-2.0)) + (1 - p) * np.log1p(np.exp(2.0))
    assert listwise_softmax(scores, next_use, mask, 1.0).item() == pytest.approx(by_hand, rel=1e-6)
    tied = listwise_softmax(scores, torch.tensor([[INF, INF, 1.0]]), mask, 1.0)
    assert tied.item() == pytest.approx((np.log1p(np.exp(-2.0)) + np.log1p(np.exp(2.0))) / 2, rel=1e-6)


def test_lambda_weights_by_hand() -> None:
    """Two rows, ranked wrongly: the pair weighs gain 1 times (1 - 1 / log2 3), over an ideal DCG of 1. With a third row
    between, needed first, every pair has its own: the gains are 1, 2, 0 and the ranks 0, 2, 1."""
    loss = lambda_ranking(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, INF]]), torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx((1 - 1 / np.log2(3)) * np.log1p(np.exp(2.0)), rel=1e-6)
    at = 1 / np.log2([2.0, 3.0, 4.0])
    pairs = [(1, at[0] - at[2], 2.0), (1, at[0] - at[1], -1.0), (2, at[1] - at[2], 1.0)]
    by_hand = sum(gain * d * np.log1p(np.exp(m)) for gain, d, m in pairs) / (2 * at[0] + at[1])
    three = lambda_ranking(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[3.0, INF, 1.0]]),
                           torch.ones(1, 3, dtype=torch.bool))
    assert three.item() == pytest.approx(by_hand, rel=1e-6)


def test_weights_scale_cloning() -> None:
    scores, mask = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    loss = weighted_cloning(scores, torch.tensor([0, 1]), mask, torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx((3 * np.log1p(np.exp(2.0)) + np.log(2.0)) / 2, rel=1e-6)
    assert weighted_cloning(scores, torch.tensor([0, 1]), mask, torch.ones(2)).item() == pytest.approx(
        behaviour_cloning(scores, torch.tensor([0, 1]), mask).item())


def test_the_expectile_of_two_points() -> None:
    """Of 0 and 1 the tau-expectile is tau; at 1/2 the loss is half the squared error."""
    m = torch.tensor(0.5, requires_grad=True)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(expectile(torch.tensor([0.0, 1.0]) - m, 0.8), m)
        m = (m - 0.5 * gradient).detach().requires_grad_()
    assert m.item() == pytest.approx(0.8, abs=1e-4)
    assert expectile(torch.tensor([3.0, -3.0]), 0.5).item() == pytest.approx(4.5)


def test_the_conservative_term_by_hand() -> None:
    values, mask = torch.tensor([[1.0, 3.0, 50.0]]), torch.tensor([[True, True, False]])
    assert conservative(values, torch.tensor([0]), mask).item() == pytest.approx(np.log1p(np.exp(2.0)), rel=1e-6)


def test_hazards_by_hand() -> None:
    """Two spans with hazards 1/4 and 1/2: returned in the first 1/4, in the second 3/8, not at all 3/8."""
    logits = torch.tensor([-np.log(3.0), 0.0], dtype=torch.float64).expand(1, 3, 2)
    for bins, chance in (([[0, 1, 2]], [0.25, 0.375, 0.375]), ([[1, 1, 1]], [0.375] * 3)):
        loss = hazard_likelihood(logits, torch.tensor(bins), torch.ones(1, 3, dtype=torch.bool))
        assert loss.item() == pytest.approx(-np.mean(np.log(chance)), rel=1e-9)
    one = hazard_likelihood(logits, torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, False]]))
    assert one.item() == pytest.approx(np.log(4.0))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_masked_rows_and_row_order_do_not_matter(seed: int) -> None:
    scores, next_use, mask = batch(seed)
    order = torch.tensor(np.random.default_rng(seed).permutation(scores.shape[1]))
    moved = scores.detach().clone()
    moved[~mask] = 1e3
    for metric in (pairwise_ranking, pair_accuracy, top_agreement, lambda_ranking,
                   lambda s, u, m: listwise_softmax(s, u, m, 0.5)):
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
