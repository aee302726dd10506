"""Sweeps: what is drawn, that the best trial is what is written, and what each backend needs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_learn_learners import labelled
from test_learn_offline import script, write

from saga_rl.errors import UserError
from saga_rl.learn.offline.learners import LEARNERS
from saga_rl.learn.offline.sweep import Dimension, best_of, config_of, draw, score, space, summary
from saga_rl.learn.offline.sweep_backends import Plan, local, wandb, wandb_config
from saga_rl.policies.learned.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sweep") / "toy-v0", labelled(0, 12, 20))


def sweep(toy: Path, out: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"algo": "listwise", "trials": 3, "epochs": 2, "validation": 0.34}
    script("sweep").main([toy], out, **(given | options))
    return json.loads((out.with_name(f"{out.name}-sweep") / "sweep.json").read_text())


@pytest.mark.parametrize("algo", list(LEARNERS))
def test_what_is_drawn_is_in_range_and_accepted(algo: str) -> None:
    dimensions = {d.name: d for d in space(algo)}
    assert {"lr", "width", "batch"} <= set(dimensions)
    for number in range(50):
        values = draw(algo, 0, number)
        for name, value in values.items():
            d = dimensions[name]
            assert value in d.choices if d.choices else d.low <= value <= d.high
            assert isinstance(value, int) or not d.whole
        config_of(algo, values, 1, 0.1, 0).facts()
    assert draw(algo, 0, 7) == draw(algo, 0, 7) != draw(algo, 1, 7)


def test_a_range_is_drawn_evenly_or_in_its_logarithm() -> None:
    even, log = Dimension("x", 1.0, 100.0), Dimension("x", 1.0, 100.0, log=True)
    assert even.draw(0.5) == pytest.approx(50.5) and log.draw(0.5) == pytest.approx(10.0)
    assert [log.draw(u) for u in (0.0, 1.0)] == [1.0, pytest.approx(100.0)]
    assert Dimension("k", choices=("a", "b")).draw(0.6) == "b"
    assert Dimension("n", 1, 9, whole=True).draw(0.49) == 5


def test_the_best_is_the_highest_score_that_could_be_told() -> None:
    records = [{"trial": n, "score": s, "decisions_seen": 10, "seconds": 0.5} for n, s in enumerate((None, .5, .9, .9))]
    assert best_of(records)["trial"] == 2
    told = summary("rank", records)
    assert told["budget"] == {"trials": 4, "decisions_seen": 40, "seconds": 2.0} and told["best"] == 2
    assert score("bc", {"validation_loss": 0.5}) == -0.5, "a lower loss is a higher score"
    assert score("iql", {"validation_loss": 0.5}) == -math.inf
    assert score("iql", {"validation_loss": 0.5, "one_step_gain": 0.1}) == 0.1


def test_a_local_sweep_writes_its_best_trial(toy: Path, tmp_path: Path) -> None:
    result = sweep(toy, tmp_path / "p")
    trials = result["trials"]
    assert [t["trial"] for t in trials] == [0, 1, 2]
    assert [t["values"] for t in trials] == [draw("listwise", 0, n) for n in range(3)]
    best = max(trials, key=lambda t: t["score"])
    assert result["best"] == best["trial"]
    assert result["budget"]["trials"] == 3
    assert result["budget"]["decisions_seen"] == sum(t["decisions_seen"] for t in trials) > 0
    folder = tmp_path / "p-sweep"
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    weights = (tmp_path / "p" / "policy.safetensors").read_bytes()
    assert weights == (folder / f"trial-{best['trial']:03d}" / "policy.safetensors").read_bytes()
    checkpoint = load_checkpoint(tmp_path / "p")
    assert checkpoint.meta["sweep"]["budget"] == result["budget"] and "best of 3 trials" in checkpoint.card
    # more trials keep those that are there
    before = (folder / "trial-001" / "trial.json").stat().st_mtime_ns
    more = sweep(toy, tmp_path / "p", trials=4)
    assert more["trials"][:3] == trials and len(more["trials"]) == 4
    assert (folder / "trial-001" / "trial.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="is of another sweep"):
        sweep(toy, tmp_path / "p", epochs=1)


@pytest.mark.skipif("SAGA_RL_RAY" not in os.environ, reason="starts Ray, half a minute or more: set SAGA_RL_RAY=1")
def test_ray_tune_runs_the_same_trials(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials in Ray's processes; what one of them trained is what this process trains from its values."""
    pytest.importorskip("ray")
    root = str(Path(__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))))
    result = sweep(toy, tmp_path / "p", backend="tune", trials=2, epochs=1)
    assert [t["trial"] for t in result["trials"]] == [0, 1] and result["backend"] == "tune"
    here = plan(toy, tmp_path / "here")
    Path(here.trials_dir).mkdir()
    again = here.run(1, result["trials"][1]["values"])
    assert again["figures"] == result["trials"][1]["figures"]


def test_ray_draws_from_the_same_ranges() -> None:
    """What Ray's own sampling gives lies where the local search draws, for every learner's space."""
    rt = pytest.importorskip("ray.tune")
    from saga_rl.learn.offline.sweep_backends import _tune_domain

    for algo in LEARNERS:
        for d in space(algo):
            values = [_tune_domain(rt, d).sample() for _ in range(30)]
            assert all(v in d.choices if d.choices else d.low <= v <= d.high for v in values), d
            assert len(set(values)) > 1 and all(isinstance(v, int) or not d.whole for v in values), d


def plan(toy: Path, folder: Path) -> Plan:
    others = {"placement": "sticky", "ordering": "fcfs", "admission": "none"}
    return Plan("listwise", 2, (str(toy),), "", "", 1, 0.34, 0, str(folder), others)


def test_a_wandb_sweep_needs_its_server(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("offline", "disabled", "dryrun"):
        monkeypatch.setenv("WANDB_MODE", mode)
        with pytest.raises(UserError, match="drawn by its server"):
            next(wandb(plan(toy, tmp_path), "p"))
        with pytest.raises(UserError, match="drawn by its server"):
            sweep(toy, tmp_path / "p", backend="wandb")
    assert not (tmp_path / "p").exists()
    told = wandb_config(plan(toy, tmp_path))
    assert set(told["parameters"]) == {d.name for d in space("listwise")}
    assert told["parameters"]["kind"] == {"values": ["listnet", "lambda"]}
    assert told["parameters"]["width"]["min"] == 8 and told["metric"]["goal"] == "maximize"


def test_mistakes_are_named(toy: Path, tmp_path: Path) -> None:
    for options, words in (({"backend": "optuna"}, "local"), ({"algo": "ranks"}, "rank"), ({"trials": 0}, "--trials"),
                           ({"validation": 0.99}, "--validation"), ({"algo": "bc", "clone": "opt"}, "belady")):
        with pytest.raises(UserError, match=words):
            sweep(toy, tmp_path / "p", **options)
    with pytest.raises(UserError, match="does not exist"):
        sweep(toy, tmp_path / "absent" / "p")
    assert not list(tmp_path.iterdir())


class Threads:
    """A place whose workers are threads of this process."""

    @contextmanager
    def workers(self, begin: Any, arguments: Any) -> Iterator[Executor]:
        with ThreadPoolExecutor(1) as pool:
            yield pool


def test_a_place_runs_the_same_trials_in_their_order_and_keeps_those_that_are_there(toy: Path, tmp_path: Path) -> None:
    def told(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in records]

    here, there = (replace(plan(toy, tmp_path / name), trials=3) for name in ("here", "there"))
    for p in (here, there):
        Path(p.trials_dir).mkdir()
    first = there.run(1, draw("listwise", 0, 1))
    records = list(local(there, Threads()))
    assert records[1] == first and told(records) == told(list(local(here)))
    for n in range(3):
        weights = [(p.checkpoint(n) / "policy.safetensors").read_bytes() for p in (here, there)]
        assert weights[0] == weights[1]
    with pytest.raises(UserError, match="--ray: is given with --backend tune"):
        sweep(toy, tmp_path / "p", backend="tune", ray="127.0.0.1:1")


def test_a_local_plan_yields_as_it_goes(toy: Path, tmp_path: Path) -> None:
    runs = local(replace(plan(toy, tmp_path), trials=2))
    first = next(runs)
    assert first["trial"] == 0 and not (tmp_path / "trial-001").exists()
    assert next(runs)["trial"] == 1
