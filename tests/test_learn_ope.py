"""Off-policy evaluation where the answer is known: a chain of decisions solved by dynamic programming, bandits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import Decisions
from saga_rl.learn.judge.ope import estimators as est
from saga_rl.learn.judge.ope import policies as pol
from saga_rl.learn.judge.ope.fqe import FqeConfig, fit
from saga_rl.learn.judge.ope.paths import Paths, cut, ratios
from saga_rl.learn.network import RowNet
from saga_rl.policies.base import Policy
from saga_rl.policies.registry import make

STATES, H, GAMMA = 3, 4, 0.9
B = np.array([[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])
PI = np.array([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
REWARD = np.array([[1.0, -0.5], [0.0, 2.0], [0.5, 0.25]])
NEXT = np.random.default_rng(0).dirichlet(np.ones(STATES), (STATES, 2))
"""(state, action, next state)"""


def values(pi: np.ndarray, transitions: np.ndarray = NEXT) -> tuple[np.ndarray, np.ndarray]:
    """Q (H, states, 2) and V (H, states) of the rest of the path, by dynamic programming."""
    q, v = np.zeros((H, STATES, 2)), np.zeros((H + 1, STATES))
    for t in range(H - 1, -1, -1):
        q[t] = REWARD + GAMMA * transitions @ v[t + 1]
        v[t] = (pi * q[t]).sum(axis=1)
    return q, v[:H]


TRUTH = float(values(PI)[1][0, 0])


def chain(n: int, seed: int, b: np.ndarray = B, transitions: np.ndarray = NEXT, noise: float = 0.5) -> Decisions:
    """n episodes of H decisions from state 0 under b. A row's features: state one-hot, action one-hot."""
    rng = np.random.default_rng(seed)
    state = np.zeros(n, int)
    seen, actions, rewards = (np.zeros((n, H), t) for t in (int, int, float))
    for t in range(H):
        seen[:, t] = state
        actions[:, t] = rng.random(n) < b[state, 1]
        rewards[:, t] = REWARD[state, actions[:, t]] + noise * rng.normal(size=n)
        cumulative = transitions[state, actions[:, t]].cumsum(axis=1)
        state = np.minimum((rng.random((n, 1)) > cumulative).sum(axis=1), STATES - 1)
    s, a = seen.ravel(), actions.ravel()
    x = np.concatenate([np.repeat(np.eye(STATES)[s][:, None], 2, axis=1), np.tile(np.eye(2), (len(s), 1, 1))], axis=2)
    return Decisions(x.astype(np.float32), np.ones((len(s), 2), bool), np.full((len(s), 2), np.inf), a, rewards.ravel(),
                     b[s, a], np.zeros(len(s), np.int64), np.repeat(np.arange(n), H), ["b"], {})


def target(observations: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return PI[observations[:, 0, :STATES].argmax(axis=1)]


def table(of: np.ndarray, data: Decisions, actions: bool) -> np.ndarray:
    s, t = data.observations[:, 0, :STATES].argmax(axis=1), np.tile(np.arange(H), len(data) // H)
    return of[t, s, data.actions] if actions else of[t, s]


def within(estimates: list[float], truth: float) -> None:
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error


# ---------------------------------------------------------------- unbiased on a known problem
@pytest.mark.parametrize("per_decision", [True, False])
def test_importance_sampling_is_unbiased(per_decision: bool) -> None:
    found = []
    for seed in range(150):
        data = chain(60, seed)
        found.append(est.importance(data.rewards, ratios(data, target), cut(data, "whole"), gamma=GAMMA,
                                    per_decision=per_decision, normalised=False).value)
    within(found, TRUTH)
    large = chain(20_000, 999)
    close = est.importance(large.rewards, ratios(large, target), cut(large, "whole"), gamma=GAMMA,
                           per_decision=per_decision)
    assert close.value == pytest.approx(TRUTH, abs=0.06)
    assert close.low < TRUTH < close.high


def test_normalised_weights_pass_a_constant_on() -> None:
    """10 more a decision is 10 (1 + gamma + ...) more in value, exactly; unnormalised weights do not add up to that."""
    data = chain(60, 0)
    paths, rho = cut(data, "whole"), ratios(data, target)
    more = 10 * sum(GAMMA ** t for t in range(H))
    for normalised in (True, False):
        a, b = (est.importance(r, rho, paths, gamma=GAMMA, normalised=normalised).value
                for r in (data.rewards, data.rewards + 10))
        assert (b - a == pytest.approx(more)) is normalised


def test_importance_sampling_in_a_bandit() -> None:
    """One decision among rows of different number and chance; the value is the mean over contexts of pi . reward."""
    rng = np.random.default_rng(1)
    found, truths = [], []
    for _ in range(150):
        n, rows = 80, 4
        masks = np.arange(rows) < rng.integers(2, rows + 1, n)[:, None]
        x = rng.normal(size=(n, rows, 1)).astype(np.float32) * masks[:, :, None]
        b = np.where(masks, np.exp(x[:, :, 0]), 0.0)
        b /= b.sum(axis=1, keepdims=True)
        actions = (rng.random((n, 1)) > b.cumsum(axis=1)).sum(axis=1).clip(max=masks.sum(axis=1) - 1)
        reward = 2.0 * x[:, :, 0] ** 2
        rewards = reward[np.arange(n), actions] + rng.normal(size=n)
        data = Decisions(x, masks, np.full((n, rows), np.inf), actions, rewards, b[np.arange(n), actions],
                         np.zeros(n, np.int64), np.arange(n), ["b"], {})
        found.append(est.importance(rewards, ratios(data, pol.uniform), cut(data, "whole"), normalised=False).value)
        truths.append(float((reward * masks).sum(axis=1) @ (1 / masks.sum(axis=1)) / n))
    within(list(np.array(found) - truths), 0.0)


def test_doubly_robust_with_right_weights_and_a_wrong_model_is_unbiased() -> None:
    rng = np.random.default_rng(3)
    wrong = rng.normal(size=(H, STATES, 2)) * 2
    v = (PI * wrong).sum(axis=2)
    found = []
    for seed in range(150):
        data = chain(60, seed)
        found.append(est.doubly_robust(data.rewards, ratios(data, target), table(wrong, data, True),
                                       table(v, data, False), cut(data, "whole"), gamma=GAMMA, normalised=False).value)
    within(found, TRUTH)


def test_doubly_robust_with_the_right_model_needs_no_weights() -> None:
    """Without noise, and with moves that follow from the action, every path gives the value itself, whatever its
    weights; with noise the spread is far below that of importance sampling."""
    fixed = np.zeros_like(NEXT)
    for s in range(STATES):
        fixed[s, 0, s], fixed[s, 1, (s + 1) % STATES] = 1.0, 1.0
    q, v = values(PI, fixed)
    data = chain(30, 0, transitions=fixed, noise=0.0)
    nonsense = np.random.default_rng(0).uniform(0.0, 3.0, len(data))
    exact = est.doubly_robust(data.rewards, nonsense, table(q, data, True), table(v, data, False), cut(data, "whole"),
                              gamma=GAMMA, normalised=False)
    assert exact.value == pytest.approx(v[0, 0], abs=1e-12)
    q, v = values(PI)
    robust, plain = [], []
    for seed in range(60):
        data = chain(60, seed)
        paths, rho = cut(data, "whole"), ratios(data, target)
        robust.append(est.doubly_robust(data.rewards, rho, table(q, data, True), table(v, data, False), paths,
                                        gamma=GAMMA, normalised=False).value)
        plain.append(est.importance(data.rewards, rho, paths, gamma=GAMMA, normalised=False).value)
    within(robust, TRUTH)
    assert np.std(robust) < 0.8 * np.std(plain)


def test_fitted_q_finds_the_values_of_the_chain() -> None:
    data = chain(1500, 5, noise=0.1)
    paths = cut(data, "whole")
    fitted = fit(data, target, paths, gamma=GAMMA, config=FqeConfig(sweeps=30, batch=256, lr=1e-2))
    q, v = values(PI)
    assert np.abs(fitted.q - table(q, data, True)).max() < 0.35
    assert np.sqrt(np.mean((fitted.v - table(v, data, False)) ** 2)) < 0.1
    model = est.modelled(fitted.v, paths)
    assert model.value == pytest.approx(TRUTH, abs=0.12) and np.isnan(model.effective)
    again = fit(data, target, paths, gamma=GAMMA, config=FqeConfig(sweeps=30, batch=256, lr=1e-2))
    np.testing.assert_array_equal(fitted.q, again.q)


# ---------------------------------------------------------------- intervals and sample size
def test_intervals_cover_about_as_often_as_they_say() -> None:
    hits = {"importance": 0, "robust": 0}
    q, v = values(PI)
    for seed in range(200):
        data = chain(80, 10_000 + seed)
        paths, rho = cut(data, "whole"), ratios(data, target)
        for name, e in (("importance", est.importance(data.rewards, rho, paths, gamma=GAMMA)),
                        ("robust", est.doubly_robust(data.rewards, rho, table(q, data, True), table(v, data, False),
                                                     paths, gamma=GAMMA))):
            hits[name] += e.low <= TRUTH <= e.high
    assert all(0.88 <= h / 200 <= 1.0 for h in hits.values()), hits


def test_effective_size_by_hand() -> None:
    assert est.effective_size(np.array([1.0, 1.0, 1.0, 1.0])) == 4.0
    assert est.effective_size(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert est.effective_size(np.zeros(3)) == 0.0
    data = chain(3, 0)
    on_policy = replace(data, propensity=target(data.observations, data.masks)[np.arange(len(data)), data.actions])
    e = est.importance(on_policy.rewards, ratios(on_policy, target), cut(on_policy, "whole"))
    assert e.effective == pytest.approx(3.0)
    assert e.value == pytest.approx(on_policy.rewards.reshape(3, H).sum(axis=1).mean())


def test_stretches_of_one_episode_are_resampled_together() -> None:
    """Every episode repeated as four equal windows says no more than once: the same interval."""
    values_ = np.random.default_rng(0).normal(size=12)
    once = Paths(np.arange(12)[:, None], np.arange(12))
    often = Paths(np.repeat(np.arange(12), 4)[:, None], np.repeat(np.arange(12), 4))
    a, b = est.modelled(values_, once), est.modelled(values_, often)
    assert (b.paths, b.episodes) == (48, 12)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_weights_by_hand() -> None:
    rho = np.array([2.0, 0.5, 3.0, 1.0, 4.0])
    paths = Paths(np.array([[0, 1, 2], [3, 4, -1]]), np.array([0, 1]))
    np.testing.assert_allclose(est.weights(rho, paths), [[2, 1, 3], [1, 4, 4]])


# ---------------------------------------------------------------- paths and refusals
def test_windows_by_hand() -> None:
    last = np.array([False] * 4 + [True, False, False, True])
    data = replace(chain(2, 0), episode=np.array([0] * 5 + [1] * 3), last=last)
    assert cut(data, "windows", 2).index.tolist() == [[0, 1], [2, 3], [5, 6]]
    assert cut(data, "windows", 4).index.tolist() == [[0, 1, 2, 3], [5, 6, 7, -1]]
    assert cut(data, "first", 2).index.tolist() == [[0, 1], [5, 6]]
    assert cut(data, "whole").index.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, -1, -1]]
    assert cut(data, "windows", 2).cluster.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match="window mode"):
        cut(data, "window", 2)


def test_data_that_cannot_tell_are_refused() -> None:
    data = chain(4, 0)
    with pytest.raises(UserError, match="without a propensity"):
        ratios(replace(data, propensity=np.full(len(data), np.nan)), target)
    with pytest.raises(UserError, match="without a propensity"):
        ratios(replace(data, propensity=np.zeros(len(data))), target)
    with pytest.raises(UserError, match="never random"):
        ratios(replace(data, propensity=np.ones(len(data))), target)
    never = np.zeros((len(data), 2))
    never[np.arange(len(data)), 1 - data.actions] = 1.0
    with pytest.raises(UserError, match="no overlap"):
        ratios(data, lambda observations, masks: never)
    rho = ratios(data, target) * (np.arange(len(data)) % H < H - 1)  # nobody takes the last action
    with pytest.raises(UserError, match="no overlap"):
        est.importance(data.rewards, rho, cut(data, "whole"))


# ---------------------------------------------------------------- target policies
def test_policies_are_distributions_over_the_mask() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = RowNet(3)
    x, masks = rng.normal(size=(40, 5, 3)).astype(np.float32), np.arange(5) < rng.integers(1, 6, 40)[:, None]
    for policy in (pol.greedy(net), pol.softmax(net, 0.7), pol.uniform, pol.epsilon(pol.greedy(net), 0.3)):
        p = policy(x, masks)
        np.testing.assert_allclose(p.sum(axis=1), 1.0)
        assert (p[~masks] == 0).all() and (p >= 0).all()
    with torch.no_grad():
        best = net(torch.from_numpy(x)).masked_fill(~torch.from_numpy(masks), -np.inf).argmax(dim=1).numpy()
    np.testing.assert_array_equal(pol.greedy(net)(x, masks).argmax(axis=1), best)
    np.testing.assert_array_equal(pol.softmax(net, 1e-3)(x, masks).argmax(axis=1), best)
    mixed = pol.epsilon(pol.greedy(net), 0.3)(x, masks)
    np.testing.assert_allclose(mixed.max(axis=1), 0.7 + 0.3 / masks.sum(axis=1))


def eviction_rows(n: int = 60, rows: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounded columns of made-up candidates, masks, and the whole rows that they come from."""
    from saga_rl.policies import features as F

    rng = np.random.default_rng(2)
    x = np.zeros((n, rows, len(F.EVICTION)))
    x[:, :, :F.E_IDLE_S] = rng.uniform(0, 1, (n, rows, F.E_IDLE_S))
    x[:, :, F.E_WAITING] = rng.random((n, rows)) < 0.2
    x[:, :, F.E_ENDED] = rng.random((n, rows)) < 0.2
    x[:, :, F.E_TTL_LEFT] = rng.uniform(-1, 1, (n, rows))
    for raw, log in ((F.E_IDLE_S, F.E_IDLE_LOG), (F.E_AGE_S, F.E_AGE_LOG), (F.E_CONTEXT, F.E_CONTEXT_LOG)):
        x[:, :, raw] = rng.uniform(1, 500, (n, rows))
        x[:, :, log] = np.log1p(x[:, :, raw])
    masks = np.arange(rows) < rng.integers(2, rows + 1, n)[:, None]
    return x[:, :, :F.E_IDLE_S].astype(np.float32), masks, x


@pytest.mark.parametrize("spec", ["lru", "lru-protect", "wa-lru", "wa-lru:alpha=1,beta=0.1", "youngest"])
def test_a_heuristic_chooses_from_a_dataset_as_it_does_from_its_rows(spec: str) -> None:
    observations, masks, whole = eviction_rows()
    policy = make("eviction", spec)
    chosen = pol.scorer(policy)(observations, masks).argmax(axis=1)
    for i, mask in enumerate(masks):
        scores = [policy.score(row, policy.params, np.zeros(1)) for row in whole[i][mask]]
        assert scores[chosen[i]] == pytest.approx(max(scores), rel=1e-5)


@pytest.mark.parametrize("spec", ["bayes-tables", "tail-lru", "s3-fifo", "belady"])
def test_a_policy_that_reads_what_datasets_lack_is_refused(spec: str) -> None:
    observations, masks, _ = eviction_rows()
    policy: Policy = make("eviction", spec)
    with pytest.raises(UserError, match="simulator"):
        pol.scorer(policy)(observations, masks)
