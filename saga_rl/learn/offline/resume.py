"""The state of a training run in one file, so that a run that was killed goes on as if it had not been.

`NAME.safetensors`: tensors as they are, everything else as JSON in its header (key `state`). It is written beside its
name and then renamed, so there is always a whole one, and reading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from saga_rl.errors import UserError
from saga_rl.files import atomic
from saga_rl.learn.data.dataset import COLUMNS, Decisions

KIND, VERSION = "saga-rl training state", 1


def write_state(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write both, atomically. `facts` must be JSON without NaN; floats come back to the last bit."""
    text = json.dumps({**facts, "kind": KIND, "version": VERSION}, allow_nan=False)
    data = save({name: t.detach().clone().contiguous() for name, t in tensors.items()}, {"state": text})
    with atomic(path) as tmp:
        tmp.write_bytes(data)


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, facts) as they were written. Raises `UserError` if there is none or it is something else."""
    if not path.is_file():
        raise UserError(path, "there is no state to go on from", "train without --resume")
    try:
        with safe_open(path, "pt") as f:
            facts = json.loads((f.metadata() or {})["state"])
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
        if (facts["kind"], facts["version"]) != (KIND, VERSION):
            raise ValueError
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        raise UserError(path, "is no state of a training run", "train without --resume") from None
    return tensors, facts


def check_same(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """`UserError` that names what differs from the run that wrote the state."""
    changed = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
    if changed:
        raise UserError(path, f"was written by another run ({', '.join(changed)} differ)",
                        "give the same options and data, or train without --resume")


def fingerprint(data: Decisions) -> str:
    """Hex digest of every column of `data`."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        digest.update(np.ascontiguousarray(getattr(data, name)).data)
    return digest.hexdigest()


def flat(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names with `prefix/` before them."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `flat` named so, with its own names."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What Adam remembers of each weight, by `number/name`."""
    return {f"{number}/{name}": value for number, kept in optimiser.state_dict()["state"].items()
            for name, value in kept.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give Adam back what `optimiser_tensors` took."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
