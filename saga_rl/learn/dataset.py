"""Decisions as a Minari dataset, and back as arrays.

A dataset is a folder `NAME-vN/` that holds Minari's `data/` and a `CARD.md`; Minari itself opens it by name when
MINARI_DATASETS_PATH is its parent folder. One episode is one replay of one session subset at one capacity under one
behaviour policy. T decisions make T + 1 observations; every info column has T + 1 rows as well, in step with the
observations, and its last row (after the last decision) is padding:

| info | shape | meaning |
|---|---|---|
| `action_mask` | (T + 1, R) bool | rows that hold a candidate |
| `next_use` | (T + 1, R) float64 | Belady label: event number of the row's next use, inf = never. For training only |
| `propensity` | (T + 1,) float64 | chance with which the behaviour chose the logged action, given the mask |
| `behaviour` | (T + 1,) text | name of the behaviour policy |
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from saga_rl.errors import UserError

META_KEY = "saga_rl"


@dataclass(frozen=True)
class Episode:
    """T decisions of one replay, all in order. R = rows, F = features."""

    observations: NDArray[np.float32]
    """(T, R, F); rows beyond the candidates are zero."""
    masks: NDArray[np.bool_]
    """(T, R)"""
    next_use: NDArray[np.float64]
    """(T, R); inf = never used again, and in padding."""
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    """(T,) what followed each action: -(tokens computed again) / 1000."""
    propensity: NDArray[np.float64]
    behaviour: str
    seed: int
    final: NDArray[np.float32]
    """(R, F) the observation after the last action; zeros when the replay ended."""
    terminated: bool
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers and strings written beside the episode: trace, capacity, tokens computed again."""

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Decisions:
    """All decisions of a dataset, concatenated. N decisions, R rows, F features."""

    observations: NDArray[np.float32]
    masks: NDArray[np.bool_]
    next_use: NDArray[np.float64]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    propensity: NDArray[np.float64]
    behaviour: NDArray[np.int64]
    """(N,) index into `behaviours`."""
    episode: NDArray[np.int64]
    behaviours: list[str]
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.actions)


@contextmanager
def new_dataset(folder: Path, rows: int, features: int, *, overwrite: bool = False) -> Iterator[DatasetWriter]:
    """A writer into a folder beside `folder`, which takes its name when all went well and vanishes otherwise."""
    from minari.dataset.minari_dataset import DATASET_ID_RE

    match = DATASET_ID_RE.fullmatch(folder.name)
    if match is None or match.group("version") is None:
        raise UserError(folder, "is not a name that Minari takes", "use letters, digits, - and _, ending in -v0")
    if not folder.parent.is_dir():
        raise UserError(folder, f"its folder {folder.parent} does not exist", "create it or name another place")
    try:
        tmp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as e:
        raise UserError(folder, f"cannot write there ({e.strerror})", "check permissions and free space") from None
    try:
        # Minari joins a relative storage path with itself, so it gets the whole path.
        yield DatasetWriter(tmp.resolve(), folder.name, rows, features)
        if overwrite and folder.is_dir():
            shutil.rmtree(folder)
        tmp.chmod(0o755)
        tmp.replace(folder)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


class DatasetWriter:
    """Appends episodes to a Minari storage (HDF5)."""

    def __init__(self, folder: Path, dataset_id: str, rows: int, features: int) -> None:
        from minari.dataset.minari_storage import MinariStorage

        self.folder = folder
        self.storage = MinariStorage.new(
            folder / "data", data_format="hdf5",
            observation_space=spaces.Box(-np.inf, np.inf, (rows, features), np.float32),
            action_space=spaces.Discrete(rows))
        self.storage.update_metadata({"dataset_id": dataset_id, "minari_version": metadata.version("minari")})

    def add(self, episodes: Iterable[Episode]) -> None:
        from minari.data_collector.episode_buffer import EpisodeBuffer

        buffers, facts = [], []
        for e in episodes:
            ends = np.zeros(len(e), bool)
            ends[-1] = True
            infos = {"action_mask": _padded(e.masks, False), "next_use": _padded(e.next_use, np.inf),
                     "propensity": _padded(e.propensity, 1.0), "behaviour": [e.behaviour] * (len(e) + 1)}
            buffers.append(EpisodeBuffer(
                seed=e.seed, observations=np.concatenate([e.observations, e.final[None]]), actions=e.actions,
                rewards=list(e.rewards), terminations=list(ends & e.terminated),
                truncations=list(ends & (not e.terminated)), infos=infos))
            facts.append({**e.facts, "behaviour": e.behaviour})
        start = self.storage.total_episodes
        self.storage.update_episodes(buffers)
        self.storage.update_episode_metadata(facts, range(start, start + len(facts)))

    def finish(self, meta: dict[str, Any], card: str) -> None:
        """Write what the dataset says of itself (JSON under the metadata key `saga_rl`) and its card."""
        self.storage.update_metadata({META_KEY: json.dumps(meta), "description": meta.get("description", "")})
        (self.folder / "CARD.md").write_text(card)


def _padded(values: NDArray, fill: Any) -> NDArray:
    return np.concatenate([values, np.full((1, *values.shape[1:]), fill, values.dtype)])


def read_dataset(folder: Path) -> Decisions:
    """The decisions of a folder written by `new_dataset`, in episode order.

    Raises `UserError` if the folder is missing, is no Minari dataset, is damaged, or lacks the columns above.
    """
    from minari.dataset.minari_dataset import MinariDataset

    if not (folder / "data").is_dir():
        raise UserError(folder, "is no dataset (it has no folder data/)", "name one that training/collect.py wrote")
    try:
        dataset = MinariDataset(folder / "data")
        meta = json.loads(dataset.storage.metadata[META_KEY])
        episodes = list(dataset.storage.get_episodes(dataset.episode_indices))
    except (KeyError, ValueError, OSError, AssertionError) as e:
        raise UserError(folder, f"cannot be read as a dataset ({type(e).__name__}: {e})", "collect it again") from None
    if not episodes:
        raise UserError(folder, "holds no episode", "collect it again")
    missing = {"action_mask", "next_use", "propensity", "behaviour"} - set(episodes[0]["infos"] or {})
    if missing:
        raise UserError(folder, f"lacks the info column {sorted(missing)[0]!r}", "collect it again")
    names = sorted({_text(e["infos"]["behaviour"][0]) for e in episodes})
    lengths = [len(e["actions"]) for e in episodes]

    def joined(pick, dtype) -> NDArray:
        return np.concatenate([np.asarray(pick(e))[:n] for e, n in zip(episodes, lengths, strict=True)]).astype(dtype)

    return Decisions(
        observations=joined(lambda e: e["observations"], np.float32),
        masks=joined(lambda e: e["infos"]["action_mask"], bool),
        next_use=joined(lambda e: e["infos"]["next_use"], np.float64),
        actions=joined(lambda e: e["actions"], np.int64),
        rewards=joined(lambda e: e["rewards"], np.float64),
        propensity=joined(lambda e: e["infos"]["propensity"], np.float64),
        behaviour=np.repeat([names.index(_text(e["infos"]["behaviour"][0])) for e in episodes], lengths),
        episode=np.repeat(np.arange(len(episodes)), lengths),
        behaviours=names, meta=meta)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
