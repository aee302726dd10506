"""From dataset folders to checkpoints of any decision, by the script, and what it says to bad input."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_learn_learners import labelled

from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import Decisions, Episode, new_dataset, read_dataset
from saga_rl.learn.offline.from_datasets import load, with_reward
from saga_rl.learn.offline.learners import LEARNERS
from saga_rl.policies.features import feature_hash
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"training_{name}", ROOT / "training" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, data: Decisions, decision: str = "eviction", behaviours: tuple[str, ...] = ("lru", "belady"),
          **more: Any) -> Path:
    """`data` as a dataset folder of `decision`; its episodes take turns with the behaviours."""
    width = len(LEARNED_FEATURES[decision])
    observations = np.zeros((*data.masks.shape, width), np.float32)
    shared = min(width, data.observations.shape[2])
    observations[..., :shared] = data.observations[..., :shared]
    zeros = np.zeros((data.masks.shape[1], width), np.float32)
    with new_dataset(folder, data.masks.shape[1], width, decision=decision) as out:
        for number in np.unique(data.episode):
            mine = data.episode == number
            rewards = data.rewards[mine]
            out.add([Episode(observations[mine], data.masks[mine], data.next_use[mine], data.actions[mine], rewards,
                             data.propensity[mine], behaviours[number % len(behaviours)], int(number), zeros, True,
                             {"trace": "toy", "kv_tokens": 100 + int(number) // 4},
                             {"log_tct": -rewards, "recomputed_tokens": 10.0 - rewards})])
        out.finish({"features": list(LEARNED_FEATURES[decision]), "feature_hash": feature_hash(decision),
                    "epsilon": 0.1, "traces": {"toy.parquet": "ab" * 32}, "capacities": [100], "record": ["lru"],
                    **more}, "# Toy\n")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("offline") / "toy-v0", labelled(0, 12, 20))


def run(toy: Path, out: Path, **options: Any) -> None:
    given: dict[str, Any] = {"epochs": 2, "batch": 64, "wandb": "disabled", "hidden": "8", "validation": 0.34}
    script("train_offline").main(toy, out, **(given | options))


@pytest.mark.parametrize("algo", list(LEARNERS))
def test_every_learner_writes_a_checkpoint(algo: str, toy: Path, tmp_path: Path) -> None:
    run(toy, tmp_path / "p", algo=algo)
    checkpoint = load_checkpoint(tmp_path / "p")
    assert checkpoint.decision == "eviction" and checkpoint.meta["config"]["algo"] == algo
    assert LEARNERS[algo].says in checkpoint.card and "toy.parquet" in checkpoint.card
    assert np.isfinite(list(checkpoint.meta["figures"].values())).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"], "no state is left after a run that ended"


@pytest.mark.parametrize("decision", ["placement", "ordering", "admission"])
def test_the_decision_is_the_datasets(decision: str, tmp_path: Path) -> None:
    """A clone of what takes the row with the highest column 3, in each decision's own convention of scores."""
    data = labelled(0, 16, 40)
    if decision == "admission":  # row 0 lets in, row 1 of zeros holds
        x = data.observations[:, :2].copy()
        x[:, 1] = 0.0
        good = x[:, 0, 3] > 0
        data = replace(data, observations=x, masks=np.ones((len(x), 2), bool), next_use=data.next_use[:, :2],
                       actions=np.where(good, 0, 1), propensity=np.ones(len(x)))
    else:
        best = np.where(data.masks, data.observations[..., 3], -np.inf).argmax(axis=1)
        data = replace(data, actions=best, propensity=np.ones(len(best)))
    write(tmp_path / "s-v0", data, decision)
    run(tmp_path / "s-v0", tmp_path / "p", algo="bc", epochs=15, lr=1e-2, batch=32)
    checkpoint = load_checkpoint(tmp_path / "p")
    assert checkpoint.decision == decision and decision not in checkpoint.others
    policy = checkpoint.policy()
    rows = np.zeros((2, len(LEARNED_FEATURES[decision])))
    rows[0, 3], rows[1, 3] = 1.5, -1.5
    high, low = (policy.score(row, policy.params, np.zeros(policy.scratch)) for row in rows)
    assert high < low if decision == "ordering" else high > low
    if decision == "admission":
        assert high > 0 > low
    assert "pair_accuracy" not in checkpoint.meta["figures"], "there are no labels"


def test_several_datasets_are_joined(toy: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more-v0", labelled(1, 6, 10), behaviours=("wa-lru",))
    run(toy, tmp_path / "p", also=[more])
    checkpoint = load_checkpoint(tmp_path / "p")
    assert "toy-v0" in checkpoint.meta["data"]["dataset"] and "more-v0" in checkpoint.meta["data"]["dataset"]
    assert "wa-lru" in checkpoint.card
    loaded = load([toy, more]).data
    settings = np.array(loaded.meta["settings"])
    assert len(loaded) == 300 and len(settings) == 18 and len(set(settings)) == 3, "capacities 100, 101, 102"
    assert (settings[[0, 4, 8]] == settings[[12, 16, 8]]).all(), "the same setting in both has one number"
    assert load([toy], clone="belady").data.behaviours == ["belady"]


def test_a_reward_is_weighed_from_components(toy: Path) -> None:
    data = read_dataset(toy)
    np.testing.assert_allclose(with_reward(data, "log_tct=2,recomputed_tokens=0.5").rewards,
                               -2 * data.components["log_tct"] - 0.5 * data.components["recomputed_tokens"])
    assert with_reward(data, "") is data
    for text, words in (("tct=1", "log_tct"), ("log_tct", "no weight"), ("log_tct=x", "no weight"),
                        ("log_tct=nan", "no weight")):
        with pytest.raises(UserError, match=words):
            with_reward(data, text)


def test_a_stopped_run_says_how_to_go_on(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in epoch 3, gone on with: the checkpoint's weights are those of a run in one go."""
    from saga_rl.learn.offline import train as loop

    run(toy, tmp_path / "whole", epochs=4)
    epoch, calls = loop._epoch, []

    def stops(*args: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return epoch(*args)

    monkeypatch.setattr(loop, "_epoch", stops)
    with pytest.raises(SystemExit) as ended:
        run(toy, tmp_path / "part", epochs=4)
    assert ended.value.code == 130 and "epoch 2 is kept" in capsys.readouterr().err
    monkeypatch.setattr(loop, "_epoch", epoch)
    with pytest.raises(UserError, match="epochs differ"):
        run(toy, tmp_path / "part", epochs=5, resume=True)
    run(toy, tmp_path / "part", epochs=4, resume=True)
    assert (tmp_path / "part" / "policy.safetensors").read_bytes() == (
        tmp_path / "whole" / "policy.safetensors").read_bytes()


def test_mistakes_are_named_and_nothing_is_written(toy: Path, tmp_path: Path) -> None:
    for options, words in (({"algo": "iqll"}, "choose one of: iql"), ({"set_": ["tau=.5"]}, "no options of its own"),
                           ({"algo": "iql", "set_": ["tau=.4"]}, "--set tau: .4 is out of range"),
                           ({"algo": "iql", "set_": ["tao=.5"]}, "choose one of: tau"),
                           ({"epochs": 0}, "--epochs"), ({"lr": 0.0}, "--lr"), ({"hidden": "8,x"}, "--hidden"),
                           ({"validation": 0.95}, "--validation"), ({"eviction": "lru"}, "--eviction"),
                           ({"placement": "stick"}, "sticky"), ({"resume": True}, "no state to go on from"),
                           ({"algo": "bc", "clone": "opt"}, "belady"), ({"reward": "tct=1"}, "--reward component")):
        with pytest.raises(UserError, match=words):
            run(toy, tmp_path / "p", **options)
    placement = write(tmp_path / "place-v0", labelled(0, 4, 10), "placement")
    for algo in ("rank", "listwise", "hazard"):
        with pytest.raises(UserError, match="Belady labels, and a dataset of placement has none"):
            run(placement, tmp_path / "p", algo=algo)
    with pytest.raises(UserError, match="different decisions"):
        run(toy, tmp_path / "p", also=[placement])
    old = write(tmp_path / "old-v0", labelled(0, 4, 10), feature_hash="0" * 64)
    with pytest.raises(UserError, match="other features or feature code"):
        run(old, tmp_path / "p")
    with pytest.raises(UserError, match="does not exist"):
        run(toy, tmp_path / "absent" / "p")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old-v0", "place-v0"]
