"""From dataset folders to a checkpoint: what `training/train_offline.py`, `dagger.py` and `sweep.py` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from saga_rl.errors import UserError, unknown_name
from saga_rl.learn.data.dataset import COMPONENTS, Decisions, episode_facts, joined, read_dataset, rows_hash
from saga_rl.learn.network import serving_layers
from saga_rl.learn.offline.learners import learner
from saga_rl.learn.offline.learners.card import learner_card
from saga_rl.learn.offline.train import TrainConfig, TrainResult
from saga_rl.policies.base import DECISIONS, Decision
from saga_rl.policies.features import same_hash
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, load_checkpoint, save_checkpoint
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import PRESETS
from saga_rl.policies.registry import make
from saga_rl.provenance import provenance, sha256

SETTING = ("trace", "kv_tokens", "load", "population", "workers", "part")
"""Facts of an episode that say where it was played: returns of different settings cannot be compared."""


@dataclass(frozen=True)
class Loaded:
    """The decisions of one or more dataset folders, and what the card says of them."""

    data: Decisions
    facts: dict[str, str]


def load(folders: Sequence[Path], clone: str = "", reward: str = "") -> Loaded:
    """Read, check and join datasets. `clone`: only the decisions of this behaviour. `reward`: see `with_reward`.

    Raises `UserError` for a dataset of other features than this version's, of a decision that no single network can
    serve, or without that behaviour.
    """
    parts, settings = [], []
    for folder in folders:
        data = read_dataset(folder)
        if data.decision not in LEARNED_FEATURES:
            raise UserError(folder, f"holds decisions of decision {data.decision!r}, which no single network serves",
                            "collect one of: " + ", ".join(LEARNED_FEATURES))
        if data.meta.get("features") != list(LEARNED_FEATURES[data.decision]) or (
                not same_hash(data.meta.get("feature_hash"), rows_hash(data.decision))):
            raise UserError(folder, "was collected with other features or feature code", "collect it again")
        settings += [", ".join(str(facts.get(k, "")) for k in SETTING) for facts in episode_facts(folder)]
        parts.append(data)
    data = joined(parts) if len(parts) > 1 else parts[0]
    data = replace(data, meta={**data.meta, "settings": np.unique(settings, return_inverse=True)[1].tolist()})
    if clone:
        if clone not in data.behaviours:
            raise unknown_name("behaviour in the dataset", clone, data.behaviours)
        data = data.where(data.behaviour == data.behaviours.index(clone))
        data = replace(data, behaviour=np.zeros(len(data), np.int64), behaviours=[clone])
    return Loaded(with_reward(data, reward), _facts(folders, parts, reward))


def with_reward(data: Decisions, text: str) -> Decisions:
    """`data` with the reward -(sum of weight x component), from `log_tct=1,recomputed_tokens=.001`; empty: as is."""
    if not text:
        return data
    total = np.zeros(len(data))
    for item in text.split(","):
        name, equals, number = item.strip().partition("=")
        if name not in COMPONENTS:
            raise unknown_name("--reward component", name, COMPONENTS)
        try:
            weight = float(number) if equals else float("nan")
        except ValueError:
            weight = float("nan")
        if not np.isfinite(weight):
            raise UserError("--reward", f"{item!r} gives no weight", "write e.g. log_tct=1,recomputed_tokens=0.001")
        total -= weight * data.components[name]
    return replace(data, rewards=total)


def check_target(out: Path) -> None:
    """`UserError` if no checkpoint folder can be made there: asked before the work that would be lost."""
    if not out.parent.is_dir():
        raise UserError(out, f"its folder {out.parent} does not exist", "create it or name another place")


def others_of(decision: str, given: dict[str, str]) -> dict[str, str]:
    """The other decisions' policies: those given, else the default preset's. Raises `UserError` for a bad spec, and one
    of the learned decision itself."""
    if given.get(decision):
        raise UserError(f"--{decision}", "names another policy for the very decision that is learned", "leave it out")
    out: dict[str, str] = {other: given.get(other) or PRESETS[DEFAULT_PRESET][other] for other in DECISIONS
                           if other != decision}
    for other, spec in out.items():
        make(cast(Decision, other), spec)
    return out


def save(out: Path, loaded: Loaded, config: TrainConfig, result: TrainResult, others: dict[str, str],
         note: str = "", more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the checkpoint folder with its card. Returns its `meta`."""
    kind, decision, net = learner(config.algo), loaded.data.decision, result.net
    data = {**loaded.facts, "decisions": f"{result.train_decisions} to train, {result.validation_decisions} held out "
                                         "(whole episodes)"}
    meta = {"algorithm": kind.says, "config": config.facts(), "figures": result.figures,
            "figures_of": "decisions of held-out episodes", "epoch": result.epoch, "seen": result.seen,
            "keeps": "the best by held-out loss" if kind.keeps == "best" else "the last",
            "note": note, "data": data, "source": provenance(seed=config.seed, trace=None), **(more or {})}
    card = learner_card(out.name, decision, meta, LEARNED_FEATURES[decision], others)
    save_checkpoint(out, decision, serving_layers(net, decision), net.mean.numpy(), net.std.numpy(), card, meta, others)
    return meta


def republish(folder: Path, out: Path, **meta: Any) -> None:
    """Write the checkpoint in `folder` to `out` under that name, with `meta` (source, note, ...) in its own's place."""
    found = load_checkpoint(folder)
    whole = {**found.meta, **meta}
    card = learner_card(out.name, found.decision, whole, LEARNED_FEATURES[found.decision], found.others)
    save_checkpoint(out, found.decision, found.layers, found.mean, found.std, card, whole, found.others)


def _facts(folders: Sequence[Path], parts: Sequence[Decisions], reward: str) -> dict[str, str]:
    """What was trained on, for the card."""
    def each(key: str) -> list[Any]:
        return sorted({item for p in parts for item in p.meta.get(key) or []})

    traces = {name: digest for p in parts for name, digest in p.meta["traces"].items()}
    out = {"dataset": "; ".join(f"{f.name}, sha256 {sha256(f / 'data' / 'main_data.hdf5')[:12]}" for f in folders),
           "seam": parts[0].decision, "traces": ", ".join(f"{n} (sha256 {h[:12]})" for n, h in traces.items()),
           "behaviours": "; ".join(", ".join(p.behaviours) + f", epsilon {p.meta['epsilon']:g}" for p in parts),
           "KV capacities": ", ".join(map(str, each("capacities")))}
    for key, words in (("loads", "loads"), ("record", "reference strings recorded under")):
        if each(key):
            out[words] = ", ".join(map(str, each(key)))
    pieces = sorted({str(p.meta["part"]) for p in parts if p.meta.get("part")})
    if pieces:
        out["part of the split"] = ", ".join(pieces)
    return {**out, **({"reward": f"-({reward})"} if reward else {})}
