"""The scripts of training/ on a tiny trace, end to end, and what they say to bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts_kit import run, script

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import read_dataset
from saga_rl.learn.judge.workloads import workload
from saga_rl.policies.features import LEARNED_EVICTION, feature_hash
from saga_rl.policies.learned.checkpoint import load_checkpoint
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import PRESETS, preset

ROOT = Path(__file__).resolve().parents[1]
KV = "45000"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace, a dataset collected from it and a checkpoint trained on that."""
    folder = tmp_path_factory.mktemp("training")
    write_trace(generate("webarena", 5, sessions=10, rate_per_min=60.0, max_context=20_000), folder / "t.parquet")
    collect(folder, "data-v0")
    train(folder, "policy")
    return folder


def collect(folder: Path, name: str, **options: Any) -> Path:
    given = {"behaviour": "lru,wa-lru,belady", "epsilon": 0.2, "max_rows": 8, "jobs": 1, "episodes": 2,
             "sessions": 6, "max_decisions": 150, "kv_tokens": KV}
    script("collect").main([folder / "t.parquet"], folder / name, **(given | options))
    return folder / name


def train(folder: Path, name: str, **options: Any) -> Path:
    given = {"epochs": 3, "batch": 64, "wandb": "disabled", "hidden": "12,6", "validation": 0.3}
    script("train_offline").main(folder / "data-v0", folder / name, **(given | options))
    return folder / name


def test_collected_data_are_what_they_say(work: Path) -> None:
    data = read_dataset(work / "data-v0")
    assert data.observations.shape[1:] == (8, len(LEARNED_EVICTION))
    assert data.behaviours == ["belady", "lru", "wa-lru"]
    assert data.meta["feature_hash"] == feature_hash("eviction")
    n = data.masks.sum(axis=1)
    assert data.masks[np.arange(len(data)), data.actions].all(), "every logged action was on a candidate"
    low = 0.2 / n
    assert (np.isclose(data.propensity, low) | np.isclose(data.propensity, 0.8 + low)).all()
    greedy = np.isclose(data.propensity, 0.8 + low)
    assert 0.8 < greedy.mean() <= 1.0
    farthest = np.where(data.masks, data.next_use, -np.inf).max(axis=1)
    picked = data.next_use[np.arange(len(data)), data.actions]
    belady = data.behaviour == data.behaviours.index("belady")
    assert (picked == farthest)[belady & greedy].mean() > (picked == farthest)[~belady].mean()
    assert (work / "data-v0" / "CARD.md").read_text().startswith("# data-v0")


def test_collecting_is_deterministic(work: Path) -> None:
    first, second = read_dataset(work / "data-v0"), read_dataset(collect(work, "again-v0"))
    for name in ("observations", "next_use", "actions", "rewards", "propensity"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), name)


def test_training_twice_gives_the_same_bytes_and_another_seed_others(work: Path) -> None:
    weights = [(train(work, name, seed=seed) / "policy.safetensors").read_bytes()
               for name, seed in (("a", 7), ("b", 7), ("c", 8))]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("algo", ["rank", "bc"])
def test_training_improves_on_chance_and_writes_a_checkpoint(work: Path, algo: str) -> None:
    checkpoint = load_checkpoint(train(work, f"by-{algo}", algo=algo, epochs=20, batch=32, validation=0.5))
    assert checkpoint.decision == "eviction"
    assert checkpoint.others == {k: v for k, v in PRESETS[DEFAULT_PRESET].items() if k != "eviction"}
    assert checkpoint.meta["figures"]["pair_accuracy"] > 0.6
    for part in ("## Training", "## Data", "belady", "sha256"):
        assert part in checkpoint.card


def test_an_export_scores_as_the_network_did(work: Path) -> None:
    import torch

    from saga_rl.learn.network import RowNet
    from saga_rl.learn.offline.train import undecided
    from saga_rl.policies.features import EVICTION

    checkpoint = load_checkpoint(work / "policy")
    data = read_dataset(work / "data-v0")
    rows = undecided(data).observations[undecided(data).masks][:300]  # the rest is settled ahead of the network
    net = RowNet.from_layers(checkpoint.layers, checkpoint.mean, checkpoint.std)
    policy = checkpoint.policy()
    scratch = np.zeros(policy.scratch)
    whole = np.zeros((len(rows), len(EVICTION)))
    whole[:, :rows.shape[1]] = rows
    ours = [policy.score(row, policy.params, scratch) for row in whole]
    with torch.no_grad():
        theirs = net(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_fine_tuning_starts_from_a_checkpoint_and_writes_one(work: Path) -> None:
    script("finetune").main(work / "policy", [work / "t.parquet"], work / "tuned", kv_tokens=KV, steps=128, rollout=64,
                            max_rows=8, wandb="disabled")
    before, after = load_checkpoint(work / "policy"), load_checkpoint(work / "tuned")
    assert [w.shape for w, _ in after.layers] == [w.shape for w, _ in before.layers]
    assert any((a != b).any() for (a, _), (b, _) in zip(after.layers, before.layers, strict=True))
    assert before.sha256[:12] in after.card


def test_evaluation_compares_on_equal_terms(work: Path) -> None:
    script("evaluate").main(work / "policy", work / "t.parquet", work / "eval", kv_tokens=KV, seeds=3, open_seeds=1)
    result = json.loads((work / "eval" / "evaluation.json").read_text())
    assert (work / "eval" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    (row,) = result["open_loop"]
    assert set(row["policies"]) == {"lru", "lru-protect", "wa-lru", "wa-lru-literal", "learned"}
    assert all(p["ratio"] >= 1.0 for p in row["policies"].values()), "Belady is a bound"
    (run,) = result["closed_loop"]
    assert set(run["arms"]) == {"lru", "saga", "saga+", "likely", "auto", "companions", "learned"}
    assert set(run["mean_vs"]) == set(run["p95_vs"]) == set(run["arms"]) - {"learned"}
    for label, arm in run["arms"].items():
        assert len(arm["tct_mean_s"]) == len(run["seeds"]) == 3
        if label != "lru" and arm["mean_vs_stock"]:
            ratio = arm["mean_vs_stock"]
            assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert result["provenance"]["trace_sha256"]


def test_interrupted_training_leaves_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("train_offline")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saga_rl.learn.offline.train._loss", stop)
    with pytest.raises(KeyboardInterrupt):
        module.main(work / "data-v0", work / "half", epochs=2, wandb="disabled")
    assert not (work / "half").exists()


def test_library_errors_name_the_option(work: Path) -> None:
    for options, words in (({"behaviour": "lruu"}, "lru"), ({"epsilon": 2.0}, "--epsilon"),
                           ({"record": "stock"}, "saga"),
                           ({"kv_tokens": "12,x"}, "12|'x'"), ({"kv_tokens": "", "pressure": ""}, "--pressure"),
                           ({"kv_tokens": "100"}, "KV pool")):
        with pytest.raises(UserError, match=words):
            collect(work, "bad-v0", **options)
    with pytest.raises(UserError, match="not empty"):
        collect(work, "data-v0")
    with pytest.raises(UserError, match="rank"):
        train(work, "bad", algo="ranking")
    with pytest.raises(UserError, match="belady"):
        train(work, "bad", algo="bc", clone="opt")
    assert not list(work.glob("*bad*")), "nothing is left behind"


@pytest.mark.parametrize("arguments", [
    ("collect", "absent.parquet", "--kv-tokens", "9000", "--out", "x-v0"),
    ("train_offline", "absent-v0", "--out", "x"),
    ("finetune", "absent", "absent.parquet", "--kv-tokens", "9000", "--out", "x"),
    ("evaluate", "absent", "absent.parquet", "--kv-tokens", "9000", "--out", "x"),
])
def test_bad_input_is_one_line_and_status_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: absent") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_collection_leaves_nothing(work: Path, tmp_path: Path, sent: int) -> None:
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "training" / "collect.py"), str(work / "t.parquet"), "--kv-tokens", KV,
         "--jobs", "1", "--episodes", "100000", "--out", "x-v0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # background jobs ignore it
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob(".x-v0.*/data/metadata.json")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(sent)
        _, errors = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "interrupted" in errors
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_workload_becomes_a_file(tmp_path: Path) -> None:
    script("workload").main("web", tmp_path / "held.parquet", part="validation")
    held = read_trace(tmp_path / "held.parquet").sessions.session_id
    parts = {part: workload("web").split(part).sessions.session_id for part in ("train", "validation", "test")}
    assert list(held) == list(parts["validation"]) and not set(held) & {*parts["train"], *parts["test"]}
    for name, part, cause in (("wed", "train", "no workload named"), ("web", "tset", "part of a workload"),
                              ("katas", "train", "file is not there")):
        with pytest.raises(UserError, match=cause):
            script("workload").main(name, tmp_path / "none.parquet", part=part)
    assert not (tmp_path / "none.parquet").exists()


# ---------------------------------------------------------------- search.py
def searched(work: Path, name: str, *more: str) -> subprocess.CompletedProcess:
    trace = str(work / "t.parquet")
    return run("search", f"{trace}@ends", "--validation", trace, "--kv-tokens", KV,
               "--population", "4", "--generations", "1", "--candidates", "4", "--episodes", "1", "--checks", "1",
               "--jobs", "1", "--wandb", "disabled", "--out", str(work / name), *more)


def test_a_search_is_made_on_the_engines_it_is_told(work: Path) -> None:
    """Their costs and limits are on the cards, and the folder serves as one policy."""
    done = searched(work, "joint", "--profile", "h100-llama3.1-8b-tp1", "--block-tokens", "32", "--expiry-s", "20")
    assert done.returncode == 0 and "against the reference rule" in done.stdout.splitlines()[-1], done.stderr
    for decision in ("eviction", "ordering", "admission"):
        card = (work / "joint" / decision / "CARD.md").read_text()
        assert "ends announced, costs of h100-llama3.1-8b-tp1, block_tokens 32, expiry_s 20" in card
        assert load_checkpoint(work / "joint" / decision).others["placement"] == PRESETS["saga+"]["placement"]


def test_a_search_goes_on_around_what_was_trained(work: Path) -> None:
    """A set whose eviction is a network: another search of it leaves that as it is, and what it writes is whole."""
    trained = load_checkpoint(work / "policy")
    first = searched(work, "around", "--trained", f"eviction={work / 'policy'}")
    assert first.returncode == 0, first.stderr
    for decision in ("ordering", "admission"):
        assert "trained otherwise" in (work / "around" / decision / "CARD.md").read_text()
    shutil.copytree(work / "around", work / "start", dirs_exist_ok=True)
    shutil.rmtree(work / "start" / "eviction")
    shutil.copytree(work / "policy", work / "start" / "eviction")
    done = searched(work, "further", "--start", str(work / "start"))
    assert done.returncode == 0 and "eviction stays as it is" in done.stdout, done.stderr
    copy = load_checkpoint(work / "further" / "eviction")
    assert copy.sha256 == trained.sha256 and "In this folder" in copy.card
    assert copy.others == {"ordering": "learned:../ordering", "admission": "learned:../admission",
                               "placement": PRESETS["saga+"]["placement"]}
    assert preset(str(work / "further")).names()["eviction"] == "learned"
    assert load_checkpoint(work / "further" / "admission").others["eviction"] == "learned:../eviction"


@pytest.mark.parametrize(("more", "word"), [
    (("--profile", "h200"), "h200"), (("--block-tokens", "0"), "--block-tokens"), (("--expiry-s", "0"), "--expiry-s"),
    (("--start", "nowhere"), "nowhere"),
    (("--trained", "placement=x"), "not searched"), (("--trained", "eviction=nowhere"), "nowhere"),
    (("--decisions", "placement"), "--workers 2")])
def test_a_search_that_cannot_be_made_is_told_in_one_line(work: Path, more: tuple[str, ...], word: str) -> None:
    done = searched(work, "none", *more)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
    assert not (work / "none").exists()
