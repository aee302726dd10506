"""A cell: one run of an experiment, described by JSON alone, so that its key says whether its result is there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run. spec: JSON; what runs it reads nothing else. key: what its result is filed under. cost: orders what is
    handed to processes, the longest first."""

    spec: Spec
    key: str
    cost: float = 0.0


def make_cell(spec: Spec, code: str, data: Any, cost: float = 0.0) -> Cell:
    """The cell of `spec`. Its key is a hash of all that its result depends on: the spec, the digest of the code, and
    `data`, JSON that says what else is read (digests of traces and weights)."""
    text = json.dumps({"spec": spec, "code": code, "data": data}, sort_keys=True, allow_nan=False, default=dict)
    return Cell(spec, hashlib.sha256(text.encode()).hexdigest()[:32], cost)
