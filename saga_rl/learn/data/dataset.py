"""Decisions as a Minari dataset, and back as arrays.

A dataset is a folder `NAME-vN/` that holds Minari's `data/` and a `CARD.md`; Minari itself opens it by name when
MINARI_DATASETS_PATH is its parent folder. One episode is one replay of one session subset at one capacity under one
behaviour policy. T decisions make T + 1 observations; every info column has T + 1 rows as well, in step with the
observations, and its last row (after the last decision) is padding:

| info | shape | meaning |
|---|---|---|
| `action_mask` | (T + 1, R) bool | rows that hold a candidate |
| `next_use` | (T + 1, R) float64 | eviction, for training only: event of the next use, inf = never, NaN = settled |
| `propensity` | (T + 1,) float64 | chance with which the behaviour chose the logged action, given the mask |
| `behaviour` | (T + 1,) text | name of the behaviour policy |
| `recomputed_tokens` | (T + 1,) float64 | component: tokens computed again between this decision and the next |
| `log_tct` | (T + 1,) float64 | component: sum of log(completion time, s) over the sessions that ended in between |
| `fairness_gap_tokens` | (T + 1,) float64 | component: by how much the episode's largest service gap grew in between |

A settled row holds more than it can use: no learned policy is asked about it (`policies.eviction.parts.dead`).
Components are costs, so the sum over an episode is the episode's own figure; a reward is some weighing of them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from saga_rl.errors import UserError
from saga_rl.policies.features import feature_hash

META_KEY = "saga_rl"
COMPONENTS = ("recomputed_tokens", "log_tct", "fairness_gap_tokens")


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
    """(T,) what followed each action; eviction: -(tokens computed again) / 1000."""
    propensity: NDArray[np.float64]
    behaviour: str
    seed: int
    final: NDArray[np.float32]
    """(R, F) the observation after the last action; zeros when the replay ended."""
    terminated: bool
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers and strings written beside the episode: trace, capacity, tokens computed again."""
    components: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """(T,) each, by name, of `COMPONENTS`; an absent one is 0."""

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Decisions:
    """All decisions of a dataset, concatenated. N decisions, R rows, F features.

    Row i + 1 is the successor of row i unless `last[i]`. After a last decision that is not `terminated` the episode was
    cut: what would have followed is unknown, so nothing can be bootstrapped there.
    """

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
    decision: str = "eviction"
    components: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """(N,) each, every name of `COMPONENTS`."""
    last: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) the last decision of its episode. Not given: where the episode number changes."""
    terminated: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """(N,) the episode truly ended there. Not given: at every last decision."""

    def __post_init__(self) -> None:
        n = len(self.actions)
        if len(self.last) == 0:
            object.__setattr__(self, "last", np.append(np.diff(self.episode) != 0, True)[:n])
        if len(self.terminated) == 0:
            object.__setattr__(self, "terminated", self.last.copy())
        zeros = {name: np.zeros(n) for name in COMPONENTS if name not in self.components}
        object.__setattr__(self, "components", {**self.components, **zeros})

    def __len__(self) -> int:
        return len(self.actions)

    def where(self, keep: NDArray[np.bool_]) -> Decisions:
        """The decisions of which `keep` (N,) is true; it must keep or leave whole episodes for `last` to stay right."""
        return replace(self, **{name: getattr(self, name)[keep] for name in COLUMNS},
                       components={name: values[keep] for name, values in self.components.items()})


COLUMNS = ("observations", "masks", "next_use", "actions", "rewards", "propensity", "behaviour", "episode", "last",
           "terminated")
"""The fields of `Decisions` with a row for each decision, but for the components."""


def labels_of(data: Decisions) -> NDArray[np.float64]:
    """Next uses, of what has no label as if it were never used again."""
    return np.where(np.isnan(data.next_use), np.inf, data.next_use)


@contextmanager
def new_dataset(folder: Path, rows: int, features: int, *, decision: str = "eviction",
                overwrite: bool = False) -> Iterator[DatasetWriter]:
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
        yield DatasetWriter(tmp.resolve(), folder.name, rows, features, decision)
        if overwrite and folder.is_dir():
            shutil.rmtree(folder)
        tmp.chmod(0o755)
        tmp.replace(folder)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


class DatasetWriter:
    """Appends episodes to a Minari storage (HDF5)."""

    def __init__(self, folder: Path, dataset_id: str, rows: int, features: int, decision: str) -> None:
        from minari.dataset.minari_storage import MinariStorage

        self.folder, self.decision = folder, decision
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
            infos = {"action_mask": _padded(e.masks, False), "propensity": _padded(e.propensity, 1.0),
                     "behaviour": [e.behaviour] * (len(e) + 1)}
            if self.decision == "eviction":
                infos["next_use"] = _padded(e.next_use, np.inf)
            for name in COMPONENTS:
                infos[name] = _padded(np.asarray(e.components.get(name, np.zeros(len(e))), np.float64), 0.0)
            buffers.append(EpisodeBuffer(
                seed=e.seed, observations=np.concatenate([e.observations, e.final[None]]), actions=e.actions,
                rewards=list(e.rewards), terminations=list(ends & e.terminated),
                truncations=list(ends & (not e.terminated)), infos=infos))
            facts.append({**e.facts, "behaviour": e.behaviour})
        start = self.storage.total_episodes
        self.storage.update_episodes(buffers)
        self.storage.update_episode_metadata(facts, range(start, start + len(facts)))

    def finish(self, meta: dict[str, Any], card: str, env: EnvSpec | None = None) -> None:
        """Write what the dataset says of itself (JSON under the metadata key `saga_rl`), its card, and the environment
        that Minari's `recover_environment` makes: that of the first episode, where they differ."""
        text = json.dumps({**meta, "seam": self.decision})
        if env is not None:
            self.storage.update_metadata({"env_spec": env.to_json()})
        self.storage.update_metadata({META_KEY: text, "description": meta.get("description", "")})
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
    decision = str(meta.get("seam", "eviction"))
    there = set(episodes[0]["infos"] or {})
    missing = {"action_mask", "propensity", "behaviour", *(["next_use"] if decision == "eviction" else [])} - there
    if missing:
        raise UserError(folder, f"lacks the info column {sorted(missing)[0]!r}", "collect it again")
    names = sorted({_text(e["infos"]["behaviour"][0]) for e in episodes})
    lengths = [len(e["actions"]) for e in episodes]

    def column(pick, dtype) -> NDArray:
        return np.concatenate([np.asarray(pick(e))[:n] for e, n in zip(episodes, lengths, strict=True)]).astype(dtype)

    masks = column(lambda e: e["infos"]["action_mask"], bool)
    last = np.zeros(len(masks), bool)
    last[np.cumsum(lengths) - 1] = True
    return Decisions(
        observations=column(lambda e: e["observations"], np.float32), masks=masks,
        next_use=column(lambda e: e["infos"]["next_use"], np.float64) if "next_use" in there else np.full(
            masks.shape, np.inf),
        actions=column(lambda e: e["actions"], np.int64),
        rewards=column(lambda e: e["rewards"], np.float64),
        propensity=column(lambda e: e["infos"]["propensity"], np.float64),
        behaviour=np.repeat([names.index(_text(e["infos"]["behaviour"][0])) for e in episodes], lengths),
        episode=np.repeat(np.arange(len(episodes)), lengths),
        behaviours=names, meta=meta, decision=decision, last=last,
        components={name: column(lambda e, name=name: e["infos"][name], np.float64) for name in COMPONENTS
                    if name in there},
        terminated=last & column(lambda e: e["terminations"], bool))


def episode_facts(folder: Path) -> list[dict[str, Any]]:
    """What is written beside each episode of a dataset that `read_dataset` takes, in the same order."""
    from minari.dataset.minari_dataset import MinariDataset

    dataset = MinariDataset(folder / "data")
    return [{k: _plain(v) for k, v in facts.items()}
            for facts in dataset.storage.get_episode_metadata(dataset.episode_indices)]


def _plain(value: Any) -> Any:
    return _text(value) if isinstance(value, (bytes, str)) else value.item() if isinstance(value, np.generic) else value


def rows_hash(decision: str) -> str:
    """`features.feature_hash` of a dataset's rows; those of decision `joint` are of two."""
    return feature_hash(*(("ordering", "admission") if decision == "joint" else (decision,)))


def joined(datasets: Sequence[Decisions]) -> Decisions:
    """All of `datasets` as one; episodes are renumbered, rows padded to the widest, meta is the first one's.

    Raises `UserError` if they are of different decisions or features.
    """
    kinds = {(d.decision, d.observations.shape[2], d.meta.get("feature_hash")) for d in datasets}
    if len(kinds) != 1:
        raise UserError("datasets", "are of different decisions or features", "join those that one network can read")
    rows = max(d.masks.shape[1] for d in datasets)
    names = sorted({b for d in datasets for b in d.behaviours})
    columns: dict[str, list[NDArray]] = {name: [] for name in COLUMNS}
    first_episode = 0
    for d in datasets:
        pad = [(0, 0), (0, rows - d.masks.shape[1])]
        moved = {"observations": np.pad(d.observations, [*pad, (0, 0)]), "masks": np.pad(d.masks, pad),
                 "next_use": np.pad(d.next_use, pad, constant_values=np.inf), "episode": d.episode + first_episode,
                 "behaviour": np.array([names.index(b) for b in d.behaviours], np.int64)[d.behaviour]}
        for name, parts in columns.items():
            parts.append(moved.get(name, getattr(d, name)))
        first_episode += int(d.episode.max()) + 1
    return Decisions(**{name: np.concatenate(parts) for name, parts in columns.items()}, behaviours=names,
                     meta=datasets[0].meta, decision=datasets[0].decision,
                     components={name: np.concatenate([d.components[name] for d in datasets]) for name in COMPONENTS})


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
