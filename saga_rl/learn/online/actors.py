"""Checkpoints as actors of `saga_rl.learn.online.sb3`, and actors as checkpoints: for each decision, and for several at
once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.learn.cards import checkpoint_card
from saga_rl.policies.base import DECISIONS, Decision
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, Checkpoint, load_checkpoint, save_checkpoint
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import PRESETS, preset

FRESH = "fresh"
GROUPS: dict[str, tuple[Decision, ...]] = {"joint": ("ordering", "admission"), "scheduler": DECISIONS}
"""Environments that train several decisions at once; their checkpoints lie in one folder and name each other."""
ABOUT = {"placement": "A learned placement policy: it scores each worker for a request, the highest gets it.",
         "ordering": "A learned order: it scores each waiting request, the lowest goes first.",
         "admission": "A learned admission policy: the request at the head of a queue enters if its score is over 0."}
_EVICTION = "A learned eviction policy: it scores each idle session's KV cache, highest goes first."
_LIMIT = "- It orders eviction and overrides no constraint; the other decisions have policies of their own."


@dataclass(frozen=True)
class Start:
    """Where training begins. parts: by decision, a checkpoint or None = fresh weights."""

    env: str
    parts: dict[str, Checkpoint | None]
    others: dict[str, str]
    """Specs of all decisions that are not trained."""
    policies: str
    """What decides them in the environment, as `presets.preset` understands it."""
    label: str


def load_start(folder: Path, env: str, policies: str) -> Start:
    """Read what `folder` names for the environment: a checkpoint of its decision, for one of `GROUPS` a folder with a
    checkpoint for each of its decisions, or `FRESH`. policies: a preset for the others, empty = the checkpoint's.

    Raises `UserError`.
    """
    decisions: tuple[str, ...] = GROUPS.get(env, (env,))
    if policies and policies not in PRESETS:
        preset(policies)  # says what is wrong with the name; folders name their own
        raise UserError("--policies", f"is the folder {policies}", "name a preset: " + ", ".join(PRESETS))
    given = PRESETS[policies or DEFAULT_PRESET]
    rest: dict[str, str] = {decision: given[decision] for decision in DECISIONS if decision not in decisions}
    if str(folder) == FRESH:
        return Start(env, dict.fromkeys(decisions), rest, policies or DEFAULT_PRESET, "fresh weights")
    parts = {decision: load_checkpoint(folder / decision if env in GROUPS else folder) for decision in decisions}
    for decision, part in parts.items():
        if part.decision != decision:
            raise UserError(folder, f"is a checkpoint of {part.decision}", f"name one of {decision}")
    first = parts[decisions[0]]
    label = f"{folder.name} (sha256 {', '.join(p.sha256[:12] for p in parts.values())})"
    if not policies:
        rest = {decision: _found(first.others[decision], first.folder) for decision in rest}
    return Start(env, dict(parts), rest, policies or str(first.folder), label)


def _found(spec: str, folder: Path) -> str:
    """Return another decision's spec, valid from anywhere."""
    name, _, rest = spec.partition(":")
    return f"learned:{(folder / rest).resolve()}" if name == "learned" else spec


def _seen_from(spec: str, folder: Path) -> str:
    """The same as a checkpoint in `folder` names it: by the way from there."""
    name, _, rest = spec.partition(":")
    return f"learned:{os.path.relpath(rest, folder.resolve())}" if name == "learned" else spec


def actor_of(start: Start) -> Any:
    """The torch module that MaskablePPO trains; scores are as learners have them, the highest first."""
    from saga_rl.learn.network import HIDDEN, RowNet
    from saga_rl.learn.online.sb3 import HeldNet, JointNet, SchedulerNet

    nets = {}
    for decision, part in start.parts.items():
        if part is None:
            nets[decision] = RowNet(len(LEARNED_FEATURES[decision]), HIDDEN)
            continue
        layers = list(part.layers)
        if decision == "ordering":  # in service the lowest goes first
            weight, bias = layers[-1]
            layers[-1] = (-weight, -bias)
        nets[decision] = RowNet.from_layers(layers, part.mean, part.std)
    if start.env == "joint":
        return JointNet(nets["ordering"], nets["admission"])
    if start.env == "scheduler":
        return SchedulerNet(**nets)
    return HeldNet(nets["admission"]) if start.env == "admission" else nets[start.env]


def save_actor(out: Path, actor: Any, start: Start, meta: dict[str, Any]) -> list[Path]:
    """Write the trained networks as checkpoints; the folders, which for `GROUPS` lie in `out` and name each other."""
    from saga_rl.learn.network import serving_layers

    written, group = [], GROUPS.get(start.env, ())
    if group:
        if out.exists() and not out.is_dir():
            raise UserError(out, "is a file", "name a folder")
        out.mkdir(exist_ok=True)
    for decision in start.parts:
        net = getattr(actor, decision, actor)
        # nobody enters at logit 0, so an admission score is what it is in service already
        layers = net.layers() if decision == "admission" else serving_layers(net, decision)
        folder = out / decision if group else out
        others = {other: _seen_from(spec, folder) for other, spec in start.others.items()}
        others |= {other: f"learned:../{other}" for other in group if other != decision}
        card = checkpoint_card(folder.name, meta, LEARNED_FEATURES[decision], others)
        if decision in ABOUT:
            card = card.replace(_EVICTION, ABOUT[decision]).replace(
                _LIMIT, "- It overrides no constraint; the other decisions have policies of their own.")
        written.append(save_checkpoint(folder, decision, layers, net.mean.numpy(), net.std.numpy(), card, meta, others))
    return written
