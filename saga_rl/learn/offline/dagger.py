"""Rounds of imitation on the policy's own states (DAgger), for eviction, where every candidate has a label.

Ross, Gordon and Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning",
AISTATS 2011. Round 0 trains on the data that are there; round k plays with the checkpoint of round k - 1, adds what it
saw and trains from the start on everything. What is kept of each round is a dataset and a checkpoint, so a stopped run
goes on with the round it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saga_rl.aeg.io import read_trace
from saga_rl.errors import UserError
from saga_rl.files import atomic
from saga_rl.learn.cards import dataset_card
from saga_rl.learn.data.collect import Task, collect, label
from saga_rl.learn.data.collect_many import Statistics
from saga_rl.learn.data.dataset import Decisions, new_dataset, read_dataset, rows_hash
from saga_rl.learn.data.rollouts import spec_of
from saga_rl.learn.network import RowNet
from saga_rl.learn.offline.from_datasets import load, others_of, save
from saga_rl.learn.offline.losses import pair_accuracy, top_agreement
from saga_rl.learn.offline.train import OnEpoch, TrainConfig, train, undecided
from saga_rl.learn.script import file_label
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, load_checkpoint
from saga_rl.provenance import provenance, sha256

DECISION = "eviction"


@dataclass(frozen=True)
class Play:
    """What is played each round: `episodes` of every (trace, KV tokens)."""

    places: Sequence[tuple[Path, int]]
    episodes: int
    epsilon: float
    sessions: int = 0
    population: int = 0
    record: str = "lru"
    max_decisions: int = 0
    max_rows: int = 32
    profile: str | None = None
    seed: int = 0
    ends: bool = False
    """Clients announce the end of a session."""

    def tasks(self, number: int, policy: Path) -> list[Task]:
        """The episodes of round `number`, each with a seed of its own."""
        places = [place for place in self.places for _ in range(self.episodes)]
        seeds = np.random.SeedSequence([self.seed, number]).generate_state(len(places))
        return [Task(str(path), kv, f"learned:{policy}", self.epsilon, int(s), self.max_rows, self.sessions,
                     self.population, self.max_decisions, self.record, self.profile, ends=self.ends)
                for (path, kv), s in zip(places, seeds, strict=True)]

    def facts(self) -> dict[str, Any]:
        """What the rounds follow from, as JSON values."""
        return {**{k: v for k, v in vars(self).items() if k != "places"},
                "places": [[file_label(path), sha256(path), kv] for path, kv in self.places]}


def gather(play: Play, number: int, policy: Path, folder: Path, on_episode: Callable[[], None]) -> Path:
    """Play round `number` with `policy` and write what it saw to `folder`, unless that is there already."""
    if folder.exists():
        return folder
    statistics, columns = Statistics(), LEARNED_FEATURES[DECISION]
    paths = sorted({path for path, _ in play.places})
    with new_dataset(folder, play.max_rows, len(columns), decision=DECISION) as writer:
        for task in play.tasks(number, policy):
            episode = collect(task)
            writer.add([episode])
            statistics.add(episode)
            on_episode()
        facts = {"source": provenance(seed=play.seed, trace=None), "seam": DECISION, "epsilon": play.epsilon,
                 "part": "",
                 "traces": {file_label(p): sha256(p) for p in paths}, "max_rows": play.max_rows, "loads": [1.0],
                 "features": list(columns), "feature_hash": rows_hash(DECISION), "record": [play.record],
                 "population": play.population, "capacities": sorted({kv for _, kv in play.places}),
                 "behaviours": [label(f"learned:{policy}")], "description": f"round {number}, the policy's own states",
                 "session_groups": {file_label(p): sorted(set(read_trace(p).sessions.group)) for p in paths},
                 "statistics": statistics.summary()}
        writer.finish(facts, dataset_card(folder.name, facts), spec_of(play.tasks(number, policy)[0]))
    return folder


def own_states(policy: Path, data: Decisions) -> dict[str, float]:
    """How the policy of a checkpoint does on decisions that it made itself and has not been trained on."""
    found = load_checkpoint(policy)
    net = RowNet.from_layers(found.layers, found.mean, found.std)
    data = undecided(data)
    low = np.where(data.masks, data.next_use, np.inf).min(axis=1)
    use = low < np.where(data.masks, data.next_use, -np.inf).max(axis=1)
    if not use.any():
        raise UserError("round", "saw no decision with a choice", "play under more pressure")
    sums = np.zeros(2)
    for part in np.array_split(np.flatnonzero(use), -(-int(use.sum()) // 1024)):
        masks, labels = torch.from_numpy(data.masks[part]), torch.from_numpy(data.next_use[part])
        with torch.no_grad():
            scores = net(torch.from_numpy(data.observations[part]))
        sums += np.array([pair_accuracy(scores, labels, masks), top_agreement(scores, labels, masks)]) * len(part)
    pairs, top = (sums / use.sum()).tolist()
    return {"own_pair_accuracy": pairs, "own_belady_agreement": top, "own_decisions": float(use.sum())}


def fit_round(number: int, folders: Sequence[Path], config: TrainConfig, out: Path,
              on_epoch: OnEpoch) -> dict[str, Any]:
    """Train on all of `folders` and write the checkpoint `out`, unless it is there. Returns its figures."""
    if not out.exists():
        loaded = load(folders)
        result = train(loaded.data, config, on_epoch)
        save(out, loaded, config, result, others_of(DECISION, {}), f"round {number} on the policy's own states",
             {"round": number})
    return load_checkpoint(out).meta["figures"]


def judge(number: int, policy: Path, folder: Path) -> dict[str, Any]:
    """What round `number` found out about the policy that played it."""
    return {"round": number, **own_states(policy, read_dataset(folder))}


def rounds_picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """PNG: agreement with Belady on the states that each round's policy met. Raises `UserError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib", "is not installed", "install the extra saga-rl[train]") from None
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, words in (("own_pair_accuracy", "pairs in order"), ("own_belady_agreement", "Belady's own choice")):
        axes.plot([r["round"] - 1 for r in rows], [r[key] for r in rows], "o-", label=words)
    axes.set(xlabel="rounds that the policy was trained for", ylabel="share of decisions",
             title="each policy on states of its own, not yet trained on")
    axes.legend()
    with atomic(path) as tmp:
        figure.savefig(tmp, format="png", dpi=130)
