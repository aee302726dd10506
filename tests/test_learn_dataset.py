"""The dataset folder: round trip, Minari's own reader, nothing half-written, readable errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import COMPONENTS, Episode, joined, new_dataset, read_dataset

ROWS, FEATURES = 4, 3


def episode(seed: int, behaviour: str = "lru", n: int = 5) -> Episode:
    rng = np.random.default_rng(seed)
    masks = np.arange(ROWS) < rng.integers(2, ROWS + 1, n)[:, None]
    obs = rng.normal(size=(n, ROWS, FEATURES)).astype(np.float32) * masks[:, :, None]
    next_use = np.where(rng.random((n, ROWS)) < 0.3, np.inf, rng.integers(0, 99, (n, ROWS)))
    return Episode(obs, masks, next_use, rng.integers(0, 2, n), -rng.random(n), rng.uniform(0.1, 1, n), behaviour, seed,
                   np.zeros((ROWS, FEATURES), np.float32), True, {"kv_tokens": 100 + seed, "trace": "toy"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy-v0"
    with new_dataset(path, ROWS, FEATURES) as out:
        out.add([episode(1), episode(2, "belady", 7)])
        out.add([episode(3, "lru", 2)])
        out.finish({"max_rows": ROWS, "description": "toy"}, "# Toy\n")
    return path


def test_round_trip(folder: Path) -> None:
    data = read_dataset(folder)
    parts = [episode(1), episode(2, "belady", 7), episode(3, "lru", 2)]
    for name in ("observations", "masks", "next_use", "actions", "rewards", "propensity"):
        np.testing.assert_array_equal(getattr(data, name), np.concatenate([getattr(p, name) for p in parts]), name)
    assert [data.behaviours[b] for b in data.behaviour] == ["lru"] * 5 + ["belady"] * 7 + ["lru"] * 2
    assert data.episode.tolist() == [0] * 5 + [1] * 7 + [2] * 2
    assert data.meta["max_rows"] == ROWS
    assert (folder / "CARD.md").read_text() == "# Toy\n"


def test_components_ends_and_cuts_come_back(tmp_path: Path) -> None:
    """Two episodes, of which the second was cut: the successor of a row is the next one unless it is the last."""
    cut = replace(episode(2, n=3), terminated=False, components={"log_tct": np.array([0.5, 0.0, 2.0])})
    with new_dataset(tmp_path / "toy-v0", ROWS, FEATURES, decision="placement") as out:
        out.add([replace(episode(1, n=2), components={"recomputed_tokens": np.array([7.0, 0.0])}), cut])
        out.finish({}, "")
    data = read_dataset(tmp_path / "toy-v0")
    assert data.decision == "placement"
    assert data.last.tolist() == [False, True, False, False, True]
    assert data.terminated.tolist() == [False, True, False, False, False]
    assert sorted(data.components) == sorted(COMPONENTS)
    assert data.components["recomputed_tokens"].tolist() == [7.0, 0.0, 0.0, 0.0, 0.0]
    assert data.components["log_tct"].tolist() == [0.0, 0.0, 0.5, 0.0, 2.0]
    assert not data.components["fairness_gap_tokens"].any()
    assert np.isinf(data.next_use).all(), "there is no label but for eviction"
    second = data.where(data.episode == 1)
    assert second.last.tolist() == [False, False, True] and second.components["log_tct"].tolist() == [0.5, 0.0, 2.0]


def test_joined_datasets_keep_every_decision(folder: Path, tmp_path: Path) -> None:
    with new_dataset(tmp_path / "wide-v0", ROWS + 2, FEATURES) as out:
        wide = episode(4, "afresh", 3)
        pad = [(0, 0), (0, 2)]
        out.add([replace(wide, masks=np.pad(wide.masks, pad), next_use=np.pad(wide.next_use, pad),
                         observations=np.pad(wide.observations, [*pad, (0, 0)]),
                         final=np.zeros((ROWS + 2, FEATURES), np.float32))])
        out.finish({}, "")
    parts = [read_dataset(folder), read_dataset(tmp_path / "wide-v0")]
    both = joined(parts)
    assert len(both) == 17 and both.masks.shape == (17, ROWS + 2)
    assert both.episode.tolist() == [0] * 5 + [1] * 7 + [2] * 2 + [3] * 3
    np.testing.assert_array_equal(both.last, np.append(np.diff(both.episode) > 0, True))
    assert [both.behaviours[b] for b in both.behaviour] == ["lru"] * 5 + ["belady"] * 7 + ["lru"] * 2 + ["afresh"] * 3
    np.testing.assert_array_equal(both.observations[:14, :ROWS], parts[0].observations)
    assert not both.masks[:14, ROWS:].any() and np.isinf(both.next_use[:14, ROWS:]).all()
    np.testing.assert_array_equal(both.masks[14:], parts[1].masks)
    with pytest.raises(UserError, match="different decisions"):
        joined([parts[0], replace(parts[1], decision="ordering")])


def test_minari_opens_it_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder.parent))
    dataset = minari.load_dataset("toy-v0")
    assert dataset.total_steps == 14
    episodes = list(dataset.iterate_episodes())
    assert [len(e.actions) for e in episodes] == [5, 7, 2]
    assert all(len(e.observations) == len(e.actions) + 1 == len(e.infos["next_use"]) for e in episodes)
    facts = next(iter(dataset.storage.get_episode_metadata([1])))
    assert (facts["behaviour"], facts["kv_tokens"], facts["seed"]) == ("belady", 102, 2)


def test_a_failed_collection_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_dataset(tmp_path / "toy-v0", ROWS, FEATURES) as out:
        out.add([episode(1)])
        raise RuntimeError("stopped")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["toy", "toy v0", "toy-v"])
def test_names_that_minari_refuses(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="-v0"), new_dataset(tmp_path / name, ROWS, FEATURES):
        pass


def test_what_is_no_dataset_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="no dataset"):
        read_dataset(tmp_path)
    with pytest.raises(UserError, match="no dataset"):
        read_dataset(tmp_path / "absent-v0")
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        read_dataset(folder)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with new_dataset(tmp_path / "toy-v0", ROWS, FEATURES) as out:
        out.finish({}, "")
    with pytest.raises(UserError, match=r"no episode|cannot be read"):
        read_dataset(tmp_path / "toy-v0")


def test_a_relative_folder_within_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with new_dataset(Path("runs/toy-v0"), ROWS, FEATURES) as out:
        out.add([episode(1)])
        out.add([episode(2)])
        out.finish({"max_rows": ROWS, "description": "toy"}, "# Toy\n")
    assert len(read_dataset(tmp_path / "runs" / "toy-v0").actions) == 10
