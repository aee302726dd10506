"""Learned policies as folders: `policy.safetensors` (weights), `policy.json` (what they mean), `CARD.md` (for people).

Tensors: `mean`, `std` (F,) float64; `L.weight` (outputs, inputs), `L.bias` (outputs,) float32 for layers L = 0, 1, ...:
the network of `mlp.py`. policy.json: `format`, `version`, `decision`, `features` (names, in order), `feature_hash`, `sizes`
(F, ..., 1), `sha256` of policy.safetensors, `companions` (the other three decisions' policy specs; `learned:PATH` is
relative to this folder), `meta` (free: behaviour policy, data, commit).

One checkpoint holds one decision. No pickle: reading one runs no code. Everything is checked before a number of it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from saga_rl.errors import UserError
from saga_rl.policies.base import DECISIONS, Policy, PolicySet, Decision
from saga_rl.policies.features import (
    LEARNED_ADMISSION,
    LEARNED_EVICTION,
    LEARNED_ORDERING,
    LEARNED_PLACEMENT,
    feature_hash,
    same_hash,
)
from saga_rl.policies.learned.checkpoint_checks import FORMAT, VERSION, check_network, read_json, read_tensors
from saga_rl.policies.learned.mlp import Layers, mlp_score, pack, scratch_size
from saga_rl.policies.learned.settled import settled_score
from saga_rl.policies.registry import make

WEIGHTS, MANIFEST, CARD = "policy.safetensors", "policy.json", "CARD.md"
LEARNED_FEATURES: dict[str, tuple[str, ...]] = {
    "eviction": LEARNED_EVICTION, "placement": LEARNED_PLACEMENT, "ordering": LEARNED_ORDERING,
    "admission": LEARNED_ADMISSION}
"""The decisions that can be learned, and the leading columns of their rows that a network reads."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that passed every check."""

    folder: Path
    decision: Decision
    layers: Layers
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    others: dict[str, str]
    meta: dict[str, Any]
    sha256: str
    card: str

    def policy(self) -> Policy:
        """The compiled scorer."""
        score = settled_score if self.decision == "eviction" else mlp_score
        doc: dict[str, Any] = {"checkpoint": str(self.folder), "sha256": self.sha256,
                               "feature_hash": feature_hash(self.decision)}
        figures = self.meta.get("figures")
        accuracy = figures.get("pair_accuracy") if isinstance(figures, dict) else None
        if self.decision == "eviction" and isinstance(accuracy, int | float) and 0 < accuracy < 1:
            doc["pair_error"] = 1.0 - accuracy  # on held-out decisions: what drift is measured against
        return Policy(self.decision, "learned", score, pack(self.layers, self.mean, self.std),
                      scratch=scratch_size(self.layers), doc=doc)

    def policies(self) -> PolicySet:
        """Return the scorer with the policies that it names for the other decisions."""
        specs = {decision: _resolve(spec, self.folder) for decision, spec in self.others.items()}
        return PolicySet(**{decision: self.policy() if decision == self.decision else make(decision, specs[decision]) for decision in DECISIONS})


def _resolve(spec: str, folder: Path) -> str:
    name, _, rest = spec.partition(":")
    return f"learned:{folder / rest}" if name == "learned" else spec


def save_checkpoint(folder: str | Path, decision: str, layers: Sequence[tuple[NDArray, NDArray]], mean: NDArray,
                    std: NDArray, card: str, meta: Mapping[str, Any], others: Mapping[str, str]) -> Path:
    """Write a checkpoint folder, whole or not at all; an older checkpoint of that name is replaced.

    layers: (W, b) each, W (outputs, inputs) as `torch.nn.Linear` keeps it; mean, std: (F,) of the training rows.
    Raises `UserError` for a network that `load_checkpoint` would refuse, a bad spec, or a folder in the way.
    """
    folder = Path(folder)
    tensors = {"mean": np.ascontiguousarray(mean, np.float64), "std": np.ascontiguousarray(std, np.float64)}
    for i, (w, b) in enumerate(layers):
        tensors[f"{i}.weight"] = np.ascontiguousarray(w, np.float32)
        tensors[f"{i}.bias"] = np.ascontiguousarray(b, np.float32)
    features = _features(folder, decision)
    sizes = check_network(folder, tensors, len(features))
    _check_others(folder, decision, others)
    for other, spec in others.items():
        if not spec.startswith("learned:"):  # a learned one may be written later
            make(cast(Decision, other), spec)
    weights = to_safetensors(tensors)
    manifest = {"format": FORMAT, "version": VERSION, "seam": decision, "features": list(features),
                "feature_hash": feature_hash(decision), "sizes": sizes, "sha256": hashlib.sha256(weights).hexdigest(),
                "companions": dict(others), "meta": dict(meta)}
    try:
        text = json.dumps(manifest, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as e:
        raise UserError(folder, f"meta cannot be written as JSON ({e})", "use numbers, strings, lists, dicts") from None
    _replace_folder(folder, {WEIGHTS: weights, MANIFEST: text.encode(), CARD: card.encode()})
    return folder


def _replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    if not folder.parent.is_dir():
        raise UserError(folder, f"its folder {folder.parent} does not exist", "create it or name another place")
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).exists() or not any(folder.iterdir()))):
        raise UserError(folder, "exists and is not a checkpoint", "name another place or move it away")
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as e:
        raise UserError(folder, f"cannot write there ({e.strerror})", "check permissions and free space") from None
    try:
        new, old = work / "new", work / "old"
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read and check a checkpoint. Raises `UserError` saying what is wrong with which file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(folder, "no such checkpoint folder", "check the path")
    for name in (MANIFEST, WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise UserError(folder, f"holds no {name}", f"a checkpoint is a folder with {WEIGHTS}, {MANIFEST}, {CARD}")
    where = folder / MANIFEST
    manifest = read_json(where)
    decision = manifest["seam"]
    features = _features(where, decision)
    if tuple(manifest["features"]) != features:
        differing = sorted(set(manifest["features"]) ^ set(features))
        raise UserError(where, f"was trained on other features ({', '.join(differing) or 'in another order'})",
                        "retrain it, or use the release that wrote it")
    if not same_hash(manifest["feature_hash"], feature_hash(decision)):
        raise UserError(where, "was trained on features that are computed otherwise (feature_hash differs)",
                        "retrain it, or use the release that wrote it")
    _check_others(where, decision, manifest["companions"])
    tensors = read_tensors(folder / WEIGHTS, manifest["sha256"])
    sizes = check_network(folder / WEIGHTS, tensors, len(features))
    if manifest["sizes"] != sizes:
        raise UserError(where, f"says sizes {manifest['sizes']}, the weights have {sizes}", "copy the checkpoint again")
    layers = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(len(sizes) - 1)]
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    return Checkpoint(folder, decision, layers, tensors["mean"], tensors["std"], manifest["companions"], manifest["meta"],
                      manifest["sha256"], card)


def load_parts(folder: str | Path) -> dict[Decision, Checkpoint]:
    """The checkpoints in a folder by decision: the one that it is, or several, each in a sub-folder named after its decision
    (`FOLDER/admission`, ...). Raises `UserError` as `load_checkpoint` does, and for a sub-folder that holds another
    decision than its name says."""
    folder = Path(folder)
    parts = [decision for decision in DECISIONS if (folder / decision / MANIFEST).is_file()]
    if (folder / MANIFEST).is_file() or not parts:
        one = load_checkpoint(folder)
        return {one.decision: one}
    return {decision: _load_as(folder / decision, decision) for decision in parts}


def load_set(folder: str | Path) -> PolicySet:
    """The policies in a folder, see `load_parts`; decisions without one are filled by what the first names beside it."""
    parts = load_parts(folder)
    rest = next(iter(parts.values())).policies()
    return PolicySet(**{decision: parts[decision].policy() if decision in parts else getattr(rest, decision) for decision in DECISIONS})


def digest(parts: Mapping[Decision, Checkpoint]) -> str:
    """SHA-256 that stands for the weights of `load_parts`: of the one file, or of all their digests in turn."""
    each = [c.sha256 for c in parts.values()]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def load_policy(folder: str, decision: Decision) -> Policy:
    """The policy in a checkpoint, which must be one of `decision`."""
    return _load_as(folder, decision).policy()


def _load_as(folder: str | Path, decision: Decision) -> Checkpoint:
    checkpoint = load_checkpoint(folder)
    if checkpoint.decision != decision:
        raise UserError(folder, f"is a checkpoint of {checkpoint.decision}, not of {decision}",
                        f"name it under {checkpoint.decision}, or a checkpoint of {decision} here")
    return checkpoint


def _features(where: Path, decision: Any) -> tuple[str, ...]:
    if decision not in LEARNED_FEATURES:
        raise UserError(where, f"decision is {decision!r}, which cannot be learned", "use " + " or ".join(LEARNED_FEATURES))
    return LEARNED_FEATURES[decision]


def _check_others(where: Path, decision: str, others: Mapping[str, Any]) -> None:
    want = [s for s in DECISIONS if s != decision]
    if sorted(others) != sorted(want) or not all(isinstance(v, str) for v in others.values()):
        raise UserError(where, f"policies for the other decisions are {dict(others)!r}", f"name one policy each for {', '.join(want)}")
