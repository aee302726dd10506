"""Every offline learner on problems with a known answer, and one battery that all of them pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import Decisions
from saga_rl.learn.network import RowNet, serving_layers
from saga_rl.learn.offline.learners import LEARNERS, learner
from saga_rl.learn.offline.learners.hazard import Hazard, times_to_next_use
from saga_rl.learn.offline.learners.options import describe, parse
from saga_rl.learn.offline.learners.returns import one_step_gain
from saga_rl.learn.offline.learners.tables import Tables, pooled
from saga_rl.learn.offline.train import RULE, TrainConfig, TrainResult, train
from saga_rl.policies.features import LEARNED_EVICTION
from saga_rl.policies.learned.mlp import forward

ROWS, FEATURES, COLUMN = 5, len(LEARNED_EVICTION), 3
LABELS = [name for name, kind in LEARNERS.items() if kind.needs == "labels"]
VALUES = ["iql", "cql"]
EPOCHS = 20


def decisions(observations: NDArray, masks: NDArray, actions: NDArray, rewards: NDArray, episode: NDArray,
              **more: Any) -> Decisions:
    given: dict[str, Any] = {"next_use": np.full(masks.shape, np.inf), "propensity": np.ones(len(actions)),
                             "behaviour": np.zeros(len(actions), np.int64), "behaviours": ["toy"], "meta": {},
                             "decision": "placement"}
    return Decisions(observations.astype(np.float32), masks, actions=actions, rewards=rewards, episode=episode,
                     **(given | more))


def labelled(seed: int = 0, episodes: int = 60, length: int = 25) -> Decisions:
    """Eviction decisions whose next use follows from one column, and a behaviour that is right half the time.

    Event t holds t + exp(2 x) with x the column, or never where x > 1.5.
    """
    rng = np.random.default_rng(seed)
    n = episodes * length
    x = rng.normal(size=(n, ROWS, FEATURES))
    x[..., 1] = x[..., 15] = 0.0  # neither waiting nor ended
    masks = np.arange(ROWS) < rng.integers(2, ROWS + 1, n)[:, None]
    wait = np.where(x[..., COLUMN] > 1.5, np.inf, np.exp(2 * x[..., COLUMN]))
    now = np.tile(np.arange(length) * 10.0, episodes)
    next_use = np.where(masks, now[:, None] + wait, np.inf)
    best = np.where(masks, x[..., COLUMN], -np.inf).argmax(axis=1)
    random = (rng.random(n) * masks.sum(axis=1)).astype(np.int64)
    actions = np.where(rng.random(n) < 0.5, best, random)
    propensity = 0.5 * (actions == best) + 0.5 / masks.sum(axis=1)
    rewards = x[np.arange(n), actions, COLUMN]
    return decisions(x * masks[..., None], masks, actions, rewards, np.repeat(np.arange(episodes), length),
                     next_use=next_use, propensity=propensity, decision="eviction")


def regret(net: RowNet, data: Decisions) -> float:
    """Mean loss of the greedy choice in the column that counts, over that of a random one."""
    with torch.no_grad():
        scores = net(torch.from_numpy(data.observations)).masked_fill(~torch.from_numpy(data.masks), -np.inf)
    pick = scores.argmax(dim=1).numpy()
    value = np.where(data.masks, data.observations[..., COLUMN], np.nan)
    best = np.nanmax(value, axis=1)
    return float((best - value[np.arange(len(data)), pick]).mean() / (best - np.nanmean(value, axis=1)).mean())


def fit(data: Decisions, algo: str, *options: str, **more: Any) -> TrainResult:
    given: dict[str, Any] = {"epochs": 12, "batch": 64, "lr": 1e-2, "hidden": (16,), "validation": 0.2}
    own = parse(learner(algo).Options, algo, options)
    return train(data, TrainConfig(algo=algo, options=own, **(given | more)), lambda epoch, curves: None)


QUICK = {"iql": ("discount=0",), "cql": ("discount=0",)}


@pytest.mark.parametrize("algo", list(LEARNERS))
def test_the_right_row_is_learned(algo: str) -> None:
    """A contextual problem: the reward, and the label, of a row is one column of it."""
    result = fit(labelled(), algo, *QUICK.get(algo, ()))
    assert regret(result.net, labelled(1)) < 0.15
    assert result.epoch <= 12 and result.seen == 12 * result.train_decisions
    if algo in LABELS:
        assert result.figures["pair_accuracy"] > 0.9


@pytest.mark.parametrize("algo", list(LEARNERS))
def test_the_same_seed_gives_the_same_weights(algo: str) -> None:
    options = QUICK.get(algo, ())
    a, b, c = (fit(labelled(), algo, *options, epochs=2, seed=seed).net.layers() for seed in (3, 3, 4))
    assert all((w == x).all() and (v == y).all() for (w, v), (x, y) in zip(a, b, strict=True))
    assert any((w != x).any() for (w, _), (x, _) in zip(a, c, strict=True))


@pytest.mark.parametrize("algo", list(LEARNERS))
def test_the_exported_actor_scores_rows_alone(algo: str) -> None:
    """Whatever its critic sees: rows in another order, or fewer of them, leave each row's score as it was."""
    data = labelled(2, 4, 20)
    net = fit(data, algo, *QUICK.get(algo, ()), epochs=1).net
    x = torch.from_numpy(data.observations)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(net(x[:, order]), net(x)[:, order])
        torch.testing.assert_close(net(x[:, :2]), net(x)[:, :2])


@pytest.mark.parametrize("kind", ["temperature=0.5", "kind=lambda"])
def test_both_listwise_losses_learn(kind: str) -> None:
    assert regret(fit(labelled(), "listwise", kind).net, labelled(1)) < 0.1


def test_a_network_trusted_little_orders_by_the_rule() -> None:
    data, rule = labelled(1), list(LEARNED_EVICTION).index(RULE)
    x = torch.from_numpy(data.observations)
    small, free = (fit(labelled(), "rank", epochs=2, trust=trust).net(x) for trust in (1e-6, 0.0))
    assert torch.equal(small.argmax(dim=1), x[..., rule].argmax(dim=1))
    assert not torch.equal(free.argmax(dim=1), x[..., rule].argmax(dim=1))
    with pytest.raises(UserError, match="no column until_log"):
        fit(replace(labelled(), decision="placement"), "bc", trust=0.5)


def test_a_learner_of_labels_refuses_data_without() -> None:
    data = replace(labelled(), next_use=np.full((1500, ROWS), np.inf))
    for algo in LABELS:
        with pytest.raises(UserError, match="choice to learn from"):
            fit(data, algo)


# ------------------------------------------------------------------------- a small Markov decision process
STATES, ACTIONS, GAMMA = 5, 3, 0.9
BEHAVIOUR = np.array([1 / 6, 1 / 6, 2 / 3])


class Mdp:
    """A chain of five states. Action 0 goes on, at a cost; 1 stays, for a little; 2 goes back to the start. Only the
    last step pays well, and whoever makes it is done."""

    move = np.array([[min(s + 1, STATES - 1), s, 0] for s in range(STATES)])
    reward = np.array([[3.0 if s == STATES - 2 else -0.1, 0.15, 0.0] for s in range(STATES)])

    def quality(self, value: NDArray) -> NDArray:
        return self.reward + GAMMA * np.where(self.move == STATES - 1, 0.0, value[self.move])

    def value(self, choose: Callable[[NDArray], NDArray]) -> NDArray:
        """Fixed point of V(s) = choose(Q(s, .))."""
        value = np.zeros(STATES)
        for _ in range(400):
            value = choose(self.quality(value))
        return value

    def data(self, seed: int = 0, episodes: int = 150, most: int = 20) -> Decisions:
        """A behaviour that goes back 5 times in 10 and otherwise does anything. Rows are shuffled, and a row tells its
        state and action only. Episodes that do not get there are cut."""
        rng = np.random.default_rng(seed)
        columns: dict[str, list] = {k: [] for k in ("x", "action", "reward", "episode", "last", "end", "chance")}
        for episode in range(episodes):
            s = int(rng.integers(0, STATES - 1))
            for t in range(most):
                order = rng.permutation(ACTIONS)
                a = int(rng.choice(ACTIONS, p=BEHAVIOUR))
                after = int(self.move[s, a])
                ends = after == STATES - 1
                columns["x"].append(np.eye(STATES * ACTIONS)[s * ACTIONS + order])
                for name, value in (("action", int(np.flatnonzero(order == a)[0])), ("reward", self.reward[s, a]),
                                    ("episode", episode), ("last", ends or t == most - 1), ("end", ends),
                                    ("chance", BEHAVIOUR[a])):
                    columns[name].append(value)
                if ends:
                    break
                s = after
        c = {name: np.array(values) for name, values in columns.items()}
        return decisions(c["x"], np.ones((len(c["x"]), ACTIONS), bool), c["action"], c["reward"], c["episode"],
                         last=c["last"], terminated=c["end"], propensity=c["chance"])

    def of(self, net: RowNet) -> NDArray:
        """The value of the network's greedy policy in each state but the last."""
        with torch.no_grad():
            pick = net(torch.eye(STATES * ACTIONS)).reshape(STATES, ACTIONS).argmax(dim=1).numpy()
        return self.value(lambda q: q[np.arange(STATES), pick])[:-1]


@pytest.fixture(scope="module")
def world() -> tuple[Mdp, Decisions]:
    return Mdp(), Mdp().data()


@pytest.mark.parametrize("algo", VALUES)
def test_the_best_policy_is_found_beneath_a_bad_behaviour(algo: str, world: tuple[Mdp, Decisions]) -> None:
    """Value iteration knows the answer. Cloning the behaviour goes back; who sees rewards but no further stays."""
    mdp, data = world
    best = mdp.value(lambda q: q.max(axis=1))[:-1]
    options = {"iql": ("tau=0.97", "temperature=0.05"), "cql": ("alpha=0.02",)}[algo]
    result = fit(data, algo, f"discount={GAMMA}", "rate=0.05", *options, epochs=EPOCHS, hidden=(32,), lr=5e-3)
    np.testing.assert_allclose(mdp.of(result.net), best, atol=1e-6)
    assert result.epoch == EPOCHS, "the last epoch is kept"
    assert (mdp.of(fit(data, "bc", epochs=3).net) < best - 1).all()
    blind = fit(data, algo, "discount=0", "rate=0.05", *options, epochs=5, hidden=(32,), lr=5e-3)
    assert (mdp.of(blind.net)[:-1] < best[:-1] - 0.1).all()


def test_values_of_the_behaviour_are_right(world: tuple[Mdp, Decisions]) -> None:
    """IQL at expectile 1/2 evaluates the behaviour, whose values a fixed point gives."""
    mdp, data = world
    truth = mdp.value(lambda q: q @ BEHAVIOUR)[:-1]
    result = fit(data, "iql", f"discount={GAMMA}", "rate=0.05", "tau=0.5", epochs=EPOCHS, hidden=(32,), lr=5e-3)
    rows = torch.eye(STATES * ACTIONS).reshape(STATES, ACTIONS, -1)
    with torch.no_grad():
        value = result.learner.value(result.net.normal(rows), torch.ones(STATES, ACTIONS, dtype=torch.bool))
        value = (value / result.learner.scale).numpy()[:-1]
    np.testing.assert_allclose(value, truth, atol=0.15)


def test_what_follows_a_cut_is_not_learned_from() -> None:
    data = decisions(np.ones((4, 2, 3)), np.ones((4, 2), bool), np.zeros(4, np.int64), np.array([1.0, 2.0, 4.0, 8.0]),
                     np.array([0, 0, 1, 1]), last=np.array([False, True, False, True]),
                     terminated=np.array([False, True, False, False]))
    tables = Tables.of(data)
    assert tables.cut.tolist() == [False, False, False, True]
    assert tables.returns(0.5).tolist() == [2.0, 2.0, 8.0, 8.0]
    for algo in VALUES:
        kind = learner(algo)
        assert kind(tables, (4,), kind.Options()).select(tables).tolist() == [True, True, True, False]
    batch = tables.part(torch.tensor([0, 1]))
    assert batch.going.tolist() == [1.0, 0.0]


def test_the_one_step_gain_is_that_of_a_known_bandit() -> None:
    """Two rows, of which the second always pays 1 and the first 0; the behaviour takes the second one time in four."""
    rng = np.random.default_rng(0)
    n = 4000
    x = np.zeros((n, 2, 2))
    x[:, 1, 0] = 1.0
    actions = (rng.random(n) < 0.25).astype(np.int64)
    data = decisions(x, np.ones((n, 2), bool), actions, actions.astype(float), np.arange(n),
                     propensity=np.where(actions == 1, 0.25, 0.75))
    net = RowNet.from_layers([(np.array([[1.0, 0.0]]), np.zeros(1))], np.zeros(2), np.ones(2))
    gain = one_step_gain(net, Tables.of(data), 0.9)
    assert gain["one_step_gain"] == pytest.approx(0.75, abs=0.03)
    assert gain["matched"] == pytest.approx(actions.mean())


def test_return_times_and_their_index() -> None:
    """Times count from the soonest next use from there on; the index falls with the time that the data show."""
    data = labelled()
    tables = Tables.of(data)
    times = times_to_next_use(tables)
    assert (times[tables.masks] >= 0).all()
    truth = data.next_use - np.tile(np.arange(25) * 10.0, 60)[:, None]
    late = times.numpy()[data.masks] <= truth[data.masks]
    assert late.all(), "what is taken for now is never too early"
    result = fit(data, "hazard", "spans=8")
    model = result.learner
    assert isinstance(model, Hazard)
    x = torch.zeros(4, FEATURES)
    x[:, COLUMN] = torch.tensor([-1.5, -0.5, 0.5, 2.0])
    with torch.no_grad():
        index, scores = model.index(x), result.net(x)
    assert (index.diff() < 0).all() and (index > 0).all() and (index < 1).all()
    assert (scores.diff() > 0).all()
    assert float(index[-1]) < 0.2 * float(index[0])


def test_pooling_is_over_valid_rows() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])
    out = pooled(x, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(out, torch.tensor([[2.0, 4.0, float(np.log(3.0))]]))


# ------------------------------------------------------------------------- export, options
@pytest.mark.parametrize("decision", ["eviction", "placement", "ordering", "admission"])
def test_each_decision_is_served_by_its_own_convention(decision: str) -> None:
    torch.manual_seed(0)
    net = RowNet(6, (5,), np.full(6, 0.5), np.full(6, 2.0))
    x = torch.randn(40, 6)
    served = forward(serving_layers(net, decision), net.mean.numpy(), net.std.numpy(), x.numpy())
    with torch.no_grad():
        ours, hold = net(x).numpy(), float(net(torch.zeros(6)))
    if decision == "admission":
        assert ((served > 1e-6) == (ours > hold + 1e-6)).all() and 0 < (ours > hold).sum() < 40
    else:
        np.testing.assert_allclose(served, -ours if decision == "ordering" else ours, atol=1e-6)


def test_options_are_checked() -> None:
    kind = learner("iql").Options
    assert parse(kind, "iql", ["tau=0.9", "context=0"]) == kind(tau=0.9, context=0)
    for items, words in ((["tua=0.9"], "tau"), (["tau"], "key=value"), (["tau=2"], "0.5 to 0.99"),
                         (["tau=x"], "not a number"), (["context=0.5"], "whole number"),
                         (["tau=.6", "tau=.7"], "twice"), (["tau=nan"], "out of range")):
        with pytest.raises(UserError, match=words):
            parse(kind, "iql", items)
    with pytest.raises(UserError, match="listnet"):
        parse(learner("listwise").Options, "listwise", ["kind=ndcg"])
    with pytest.raises(UserError, match="no options"):
        parse(learner("rank").Options, "rank", ["x=1"])
    with pytest.raises(UserError, match="there is no --algo named 'ranks'; choose one of: rank"):
        learner("ranks")


@pytest.mark.parametrize("algo", list(LEARNERS))
def test_every_learner_says_what_it_is(algo: str) -> None:
    kind = LEARNERS[algo]
    assert kind.needs in ("labels", "actions", "rewards") and kind.keeps in ("best", "last") and kind.says
    for name, text in describe(kind.Options).items():
        assert "default" in text, name
