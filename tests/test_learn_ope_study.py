"""The study: its truth is the simulator's own, its labels are Belady's, and one command writes it whole."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gymnasium.utils import seeding

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.env.episodes import resample
from saga_rl.errors import UserError
from saga_rl.learn.data.collect import game_of
from saga_rl.learn.data.dataset import Decisions, episode_facts, labels_of, read_dataset
from saga_rl.learn.data.task import with_trace
from saga_rl.learn.judge.ope import estimators as est
from saga_rl.learn.judge.ope.policies import from_scores
from saga_rl.learn.judge.ope.study import Study, label_places, pick, play_targets, rank_correlations
from saga_rl.policies.registry import make
from saga_rl.sim.openloop.bound import bound

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ["lru", "lru-protect", "wa-lru", "youngest"]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"training_{name}", ROOT / "training" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ope")
    write_trace(generate("webarena", 5, sessions=12, rate_per_min=60.0, max_context=20_000), folder / "t.parquet")
    script("collect").main([folder / "t.parquet"], folder / "d-v0", kv_tokens="45000", behaviour="lru,wa-lru",
                           epsilon=0.3, max_rows=8, episodes=2, jobs=1, sessions=8)
    return folder


def test_the_truth_is_what_the_simulator_says(work: Path) -> None:
    """The dataset's first episode, arranged again from its seed, replayed by `bound`."""
    facts = episode_facts(work / "d-v0")
    specs = dict.fromkeys(TARGETS[:2])
    policies = {name: make("eviction", name) for name in specs}
    files = {facts[0]["file"]: work / "t.parquet"}
    truth = play_targets(facts, files, "eviction", policies, {n: n for n in specs}, lambda _: None)
    game = game_of(with_trace(facts[0], str(work / "t.parquet"), "eviction", "lru"))
    rng, _ = seeding.np_random(facts[0]["seed"])
    arranged = resample(game.env.trace, rng, 8)
    result = bound(arranged, game.env.config, list(specs))
    assert truth[:, 0].tolist() == [-result["policies"][n]["recomputed_tokens"] / 1000 for n in specs]


def test_labels_place_belady_first(work: Path) -> None:
    masks = np.array([[True, True, True], [True, True, False]])
    use = np.array([[3.0, np.inf, 5.0], [4.0, 4.0, np.inf]])
    data = Decisions(np.zeros((2, 3, 1), np.float32), masks, use, np.zeros(2, np.int64), np.zeros(2), np.full(2, 0.5),
                     np.zeros(2, np.int64), np.zeros(2, np.int64), ["b"], {})
    np.testing.assert_allclose(label_places(data), [[0.0, 1.0, 0.5], [0.5, 0.5, 0.0]])
    real = read_dataset(work / "d-v0")
    places = label_places(real)
    use = labels_of(real)
    belady = (places * from_scores(np.where(np.isinf(use), 1e18, use), real.masks)).sum(axis=1)
    assert (belady == places.max(axis=1)).all()
    assert (places * real.masks / real.masks.sum(axis=1, keepdims=True)).sum(axis=1).mean() == pytest.approx(0.5)


def study(values: dict[str, float], truth: list[float]) -> Study:
    """A study of four episodes in which nothing varies from one to another."""
    draws = est.RESAMPLES
    made = {name: {e: est.Estimate(v, v, v, 1.0, 4, 4, np.full(draws, v)) for e in ("wis", "fqe", "dr", "labels")}
            for name, v in values.items()}
    return Study(made, dict.fromkeys(values, 0.5), np.repeat(np.array(truth)[:, None], 4, axis=1), len(truth) * 4)


def test_rank_correlation_by_hand() -> None:
    same = rank_correlations(study({"a": 1.0, "b": 2.0, "c": 3.0}, [-30.0, -20.0, -10.0]), 0)["dr"]
    assert same["spearman"] == {"value": 1.0, "low": 1.0, "high": 1.0} and same["regret"] == 0.0
    turned = rank_correlations(study({"a": 3.0, "b": 2.0, "c": 1.0}, [-30.0, -20.0, -10.0]), 0)["wis"]
    assert turned["kendall"]["value"] == -1.0 and turned["regret"] == 20.0
    some = rank_correlations(study({"a": 1.0, "b": 3.0, "c": 2.0}, [-30.0, -20.0, -10.0]), 0)["fqe"]
    assert some["spearman"]["value"] == pytest.approx(0.5) and some["kendall"]["value"] == pytest.approx(1 / 3)
    assert rank_correlations(study({"a": 1.0, "b": 3.0}, [-3.0, -2.0]), 0)["dr"] == {"targets": 2}
    assert pick(study({"a": 1.0, "b": 3.0, "c": 9.0}, [0.0] * 3), "dr", ["a", "b"]) == "b"


def run(work: Path, name: str, **options: Any) -> dict[str, Any]:
    given = {"traces": str(work / "t.parquet"), "targets": ",".join(TARGETS), "horizon": 2, "model_horizon": 8,
             "sweeps": 4, "picking": True}
    script("ope").main(work / "d-v0", work / name, **(given | options))
    return json.loads((work / name / "ope.json").read_text())


def test_one_command_writes_the_study(work: Path) -> None:
    result = run(work, "ope")
    assert list(result["targets"]) == TARGETS
    assert result["online_evaluations"] == len(TARGETS) * result["episodes"] == 16
    assert result["picked"] in TARGETS and result["picked_by"] == "labels"
    assert (work / "ope" / "ope.png").read_bytes().startswith(b"\x89PNG")
    for row in result["targets"].values():
        for estimator in ("wis", "fqe", "dr", "labels"):
            assert row[estimator]["low"] <= row[estimator]["value"] <= row[estimator]["high"]
    blind = run(work, "blind", online=False, traces="")
    assert blind["online_evaluations"] == 0 and blind["rank_correlation"] is None
    assert blind["picked"] == result["picked"]
    for name in TARGETS:
        assert blind["targets"][name]["dr"] == result["targets"][name]["dr"], "estimates see no online evaluation"


def test_mistakes_are_named(work: Path) -> None:
    for options, words in (({"by": "oracle"}, "--by"), ({"mode": "window"}, "--mode"),
                           ({"targets": "lru,lru"}, "twice"),
                           ({"traces": ""}, "--no-online"), ({"traces": str(work / "d-v0" / "CARD.md")}, "contents of"),
                           ({"targets": "s3-fifo"}, "memory"), ({"horizon": 0}, "--horizon")):
        with pytest.raises(UserError, match=words):
            run(work, "bad", **options)
    assert not (work / "bad").exists()
