"""Collecting: propensities, components that add up, splits by group, any number of processes, live recordings."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.errors import UserError
from saga_rl.learn.data.collect import collect, label
from saga_rl.learn.data.dataset import episode_facts, read_dataset
from saga_rl.learn.data.rollouts import FEATURES
from saga_rl.learn.data.task import Task, trace_of, with_trace
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES
from saga_rl.policies.parameters import DEFAULT_PRESET, DEFAULT_PROFILE

ROOT = Path(__file__).resolve().parents[1]
KV = 45_000


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_collect", ROOT / "training" / "collect.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("collect") / "t.parquet"
    write_trace(generate("webarena", 5, sessions=24, rate_per_min=60.0, max_context=20_000), path)
    return path


def test_placements_are_logged_with_what_followed(trace: Path) -> None:
    """Components are costs that add up to the run's own figures; the reward is minus the log of completion times."""
    task = Task(str(trace), 60_000, "saga:theta=100", 0.3, 3, decision="placement", workers=3, sessions=8)
    e = collect(task)
    assert e.masks.all() and e.observations.shape[1:] == (3, len(LEARNED_FEATURES["placement"]))
    greedy = np.isclose(e.propensity, 0.7 + 0.1)
    assert (greedy | np.isclose(e.propensity, 0.1)).all() and 0.5 < greedy.mean() < 1.0
    assert e.terminated and e.facts["sessions_done"] == 8
    np.testing.assert_array_equal(e.components["log_tct"], -e.rewards)
    assert e.components["recomputed_tokens"].sum() == e.facts["recomputed_tokens"]
    assert (e.components["recomputed_tokens"] >= 0).all()
    np.testing.assert_array_equal(collect(task).actions, e.actions)


@pytest.mark.parametrize(("decision", "behaviour", "rows"), [
    ("ordering", "session-fcfs", 6), ("admission", "limit-live:share=.8", 2), ("joint", "srpt+limit-live:share=.8", 6)])
def test_choices_from_a_queue_are_logged_with_what_followed(trace: Path, decision: str, behaviour: str,
                                                            rows: int) -> None:
    task = Task(str(trace), 60_000, behaviour, 0.3, 3, 6, 10, 8, decision=decision)
    e = collect(task)
    assert e.observations.shape[1:] == (rows, len(FEATURES[decision])) and len(e) > 10
    n = e.masks.sum(axis=1)
    assert (n > 1).all() and e.masks[np.arange(len(e)), e.actions].all()
    greedy = np.isclose(e.propensity, 0.7 + 0.3 / n)
    assert (greedy | np.isclose(e.propensity, 0.3 / n)).all() and 0.5 < greedy.mean() < 1.0
    held = e.actions == rows - 1
    if decision == "ordering":
        assert (e.actions[greedy] == 0).all(), "rows are in the order of the behaviour"
    else:
        assert ((e.actions[greedy] == 0) | held[greedy]).all() and 0 < held[greedy].sum() < greedy.sum()
        assert not e.observations[held, rows - 1].any(), "holding has no features"
    np.testing.assert_array_equal(e.components["log_tct"], -e.rewards)
    assert e.terminated and e.facts["sessions_done"] == 10
    assert 0 <= e.components["recomputed_tokens"].sum() <= e.facts["recomputed_tokens"]
    np.testing.assert_array_equal(collect(task).actions, e.actions)
    assert np.isinf(e.next_use).all()


def test_a_behaviour_without_randomness_plays_as_the_simulator_does(trace: Path) -> None:
    from saga_rl.policies.presets import preset
    from saga_rl.policies.registry import make
    from saga_rl.sim.cluster import simulate

    task = Task(str(trace), 60_000, "least-load", 0.0, 0, decision="placement", workers=3, shuffle=False)
    e = collect(task)
    policies = replace(preset(DEFAULT_PRESET), placement=make("placement", "least-load"))
    from saga_rl.env.episodes import sim_config

    run = simulate(trace_of(task), sim_config(60_000, 3), policies, slo=False)
    assert -e.rewards.sum() == pytest.approx(np.log(run.tct_s).sum(), rel=1e-12)
    assert e.facts["recomputed_tokens"] == run.metrics["recomputed_tokens"]


def test_components_of_evictions_add_up(trace: Path) -> None:
    e = collect(Task(str(trace), KV, "wa-lru", 0.2, 4, sessions=10))
    later = e.components["recomputed_tokens"].sum()
    assert 0 < later <= e.facts["recomputed_tokens"], "what came before the first decision is nobody's doing"
    np.testing.assert_allclose(e.rewards, -e.components["recomputed_tokens"] / 1000)


def test_a_load_moves_arrivals_closer(trace: Path) -> None:
    plain = trace_of(Task(str(trace), KV, "lru", 0.0, 0))
    fast = trace_of(Task(str(trace), KV, "lru", 0.0, 0, load=2.0))
    np.testing.assert_allclose(np.diff(fast.sessions.arrival_s), np.diff(plain.sessions.arrival_s) / 2)
    np.testing.assert_array_equal(fast.steps.prompt_tokens, plain.steps.prompt_tokens)


def test_a_task_is_rebuilt_from_its_facts(trace: Path) -> None:
    task = Task(str(trace), KV, "wa-lru", 0.25, 4, 9, 6, 5, 80, "saga+", load=1.5,
                fractions=(("train", 0.5), ("b", 0.5)), part="b", split_seed=7, ends=True)
    again = with_trace({**task.facts(), "seed": 4}, str(trace), "eviction", "wa-lru")
    assert again == replace(task, epsilon=0.0, profile=DEFAULT_PROFILE)
    hidden = with_trace({**replace(task, ends=False).facts(), "seed": 4}, str(trace), "eviction", "wa-lru")
    assert not hidden.ends
    old = {k: v for k, v in task.facts().items() if k != "ends"} | {"seed": 4, "profile": ""}
    assert with_trace(old, str(trace), "eviction", "wa-lru") == replace(
        again, profile="a100-llama3-70b-tp4"), "an older dataset is played again as it was"


def test_parts_share_no_group_and_the_number_of_processes_changes_nothing(trace: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"behaviour": "lru,wa-lru", "epsilon": 0.2, "kv_tokens": str(KV), "max_decisions": 40,
                               "max_rows": 8, "fractions": "train=.5,validation=.25,test=.25"}
    for name, jobs in (("one-v0", 1), ("two-v0", 2)):
        script().main([trace], tmp_path / name, jobs=jobs, **options)
    written = [f"{name}-{part}-v0" for name in ("one", "two") for part in ("train", "validation")]
    assert sorted(p.name for p in tmp_path.iterdir()) == written, "the test part is left alone"
    groups = []
    for part in ("train", "validation"):
        one, two = (read_dataset(tmp_path / f"{name}-{part}-v0") for name in ("one", "two"))
        for column in ("observations", "actions", "rewards", "propensity", "episode"):
            np.testing.assert_array_equal(getattr(one, column), getattr(two, column), column)
        groups.append({g for names in one.meta["session_groups"].values() for g in names})
        facts = episode_facts(tmp_path / f"one-{part}-v0")
        assert [f["behaviour"] for f in facts] == ["lru", "wa-lru"] and {f["part"] for f in facts} == {part}
        card = (tmp_path / f"one-{part}-v0" / "CARD.md").read_text()
        assert f"part `{part}`" in card and "propensity" in card
    everything = set(read_trace(trace).sessions.group)
    assert not groups[0] & groups[1] and groups[0] | groups[1] < everything


def test_mistakes_are_named(trace: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"kv_tokens": str(KV), "jobs": 1}
    for options, words in (({"decision": "evict"}, "eviction"), ({"fractions": "train"}, "share"),
                           ({"parts": "a"}, "fractions"),
                           ({"fractions": "a=.5,b=.5", "parts": "c"}, "--parts"), ({"load": "0"}, "--load"),
                           ({"decision": "placement", "behaviour": "belady"}, "belady"),
                           ({"decision": "joint", "behaviour": "fcfs"}, "ORDERING.ADMISSION"),
                           ({"behaviour": "clairvoyant"}, "future"),
                           ({"fractions": "test=1"}, "only the test part")):
        with pytest.raises(UserError, match=words):
            script().main([trace], tmp_path / "x-v0", **(given | options))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_labelled_by_its_folder() -> None:
    assert label("learned:/some/where/pooled") == "learned:pooled"
    assert label("wa-lru:alpha=1,beta=2") == "wa-lru:alpha=1,beta=2"
    assert label("session-fcfs+learned:/some/where/joint") == "session-fcfs+learned:joint"
    assert label("learned:/a/b+learned:/c/d") == "learned:b+learned:d"


def test_a_recording_of_live_traffic_is_a_trace_like_any(tmp_path: Path) -> None:
    """Journal lines of two sessions with growing contexts, as an engine writes them, merged and collected from."""
    from saga_rl.runtime.recording.merge import merge
    from saga_rl.runtime.recording.recorder import Recorder, journal_folder
    from saga_rl.runtime.sessions.hints import Hints
    from saga_rl.runtime.sessions.tracker import Served

    record, block = tmp_path / "served.parquet", 16
    recorder = Recorder(record, 0, "key", block, wall=0.0)
    for step in range(6):
        for session in range(6):
            at, blocks = 40.0 * step + 5.0 * session, 60 * (step + 1)
            hashes = [f"{session}.{b}".encode() for b in range(blocks)]
            recorder.finished(Served(1, Hints(session=f"s{session}", tool="bash", final=step == 5), at,
                                     block * blocks - 40, step + 1, scheduled_s=at + 0.1, first_token_s=at + 0.2,
                                     cached_tokens=0), at + 2.0, 40, hashes)
    recorder.close()
    merge(journal_folder(record), record)
    script().main([record], tmp_path / "live-v0", kv_tokens="12000", behaviour="lru", epsilon=0.5, jobs=1, max_rows=8)
    data = read_dataset(tmp_path / "live-v0")
    assert len(data) > 0 and data.terminated.sum() == 1
    assert len(data.meta["session_groups"][f"{tmp_path.name}/served.parquet"]) == 6


@pytest.mark.parametrize(("decision", "behaviour"), [("eviction", "lru,wa-lru"), ("placement", "least-sessions"),
                                                 ("joint", "srpt+reserve-older")])
def test_minari_recovers_the_environment(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         decision: str, behaviour: str) -> None:
    """What it makes of a dataset plays the dataset's own episodes, which is how d3rlpy loads one; and it is listed."""
    minari = pytest.importorskip("minari")
    from minari.cli import app
    from typer.testing import CliRunner

    script().main([trace], tmp_path / "few-v0", decision=decision, kv_tokens=str(KV), max_decisions=12, epsilon=0.2,
                  episodes=2, behaviour=behaviour, fractions="train=.5,test=.5",
                  population=0 if decision == "placement" else 8, load="1.5", jobs=1)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("few-train-v0")
    env = dataset.recover_environment()
    assert env.action_space == dataset.action_space
    assert isinstance(env.spec.max_episode_steps, int)  # d3rlpy wraps it in gymnasium's TimeLimit, which wants one
    for episode in dataset:
        obs, _ = env.reset(seed=int(episode.infos["seed"][0]) if "seed" in episode.infos else int(next(iter(
            dataset.storage.get_episode_metadata([episode.id])))["seed"]))
        np.testing.assert_array_equal(obs, episode.observations[0])
        for k, action in enumerate(episode.actions):
            obs, reward, over, _, _ = env.step(action)
            np.testing.assert_array_equal(obs, episode.observations[k + 1])
            assert reward == episode.rewards[k] and over == episode.terminations[k]
    listed = CliRunner().invoke(app, ["list", "local"])
    assert listed.exit_code == 0, listed.output
    assert "few-train-v0" in listed.output.replace("\n", "")
