"""One word for all four decisions: `lru`, `saga`, `saga+`, `likely`, or a folder: a checkpoint with the
policies that it names for the others, or several checkpoints, one in a sub-folder of each decision's name."""

from __future__ import annotations

from pathlib import Path

from saga_rl.errors import UserError, unknown_name
from saga_rl.policies.base import DECISIONS, PolicySet
from saga_rl.policies.registry import make

PRESETS: dict[str, dict[str, str]] = {
    # what vLLM and a session-affine router do
    "lru": {"eviction": "lru", "placement": "sticky", "ordering": "fcfs", "admission": "none"},
    # SAGA, with the lazy reading of its TTL. Its load threshold is retuned: the paper's 0.8 supposes that KV moves with
    # the session; where a move means computing the context again, 0.8 sets off a spiral of moves
    # (docs/reference/policies.md).
    "saga": {"eviction": "wa-lru", "placement": "saga:theta=100", "ordering": "afs", "admission": "none"},
    # the strongest heuristics measured on real vLLM where clients say which request is a session's last
    "saga+": {"eviction": "youngest", "placement": "saga:theta=100", "ordering": "session-fcfs",
              "admission": "reserve-older"},
    # ... and where nobody says it: what a session holds counts by the chance that it goes on
    # (docs/explanation/serving-gain.md)
    "likely": {"eviction": "bayes-tables", "placement": "least-sessions", "ordering": "session-fcfs",
               "admission": "reserve-older:likely=1"},
    # ... and safe to install blindly: what comes back by a copy from memory below the GPU's is not reserved for, and
    # nobody waits longer than what his wait saves is worth
    "auto": {"eviction": "bayes-tables", "placement": "sticky", "ordering": "session-fcfs",
             "admission": "reserve-older:likely=1,tier=3,patience_s=3"},
}


def preset_names() -> list[str]:
    return list(PRESETS)


def from_specs(specs: dict[str, str]) -> PolicySet:
    """The policies that four specs (decision -> spec, see `registry.make`) name."""
    return PolicySet(**{decision: make(decision, specs[decision]) for decision in DECISIONS})


def preset(name: str) -> PolicySet:
    """The set that `name` names: a preset, or the folder of a checkpoint or of several.

    Raises `UserError` for a name that is neither (listing the presets, nearest first) and for a damaged checkpoint.
    """
    if name in PRESETS:
        return from_specs(PRESETS[name])
    if Path(name).is_dir():
        from saga_rl.policies.learned.checkpoint import load_set

        return load_set(name)
    error = unknown_name("policy preset", name, PRESETS)
    raise UserError(error.where, error.cause, error.mend + ", or name a checkpoint's folder")
