"""A preset as a folder that serves: its placement written as a network of a few weights, the rest named beside it.

A checkpoint holds weights, and a preset has none. But the placements of the presets that are safe are linear: home if
there is one, else the smallest load. (An ordering would not do: a network's keys are made anew
from time to time only, those of `session-fcfs` always hold.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.policies.base import DECISIONS
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, save_checkpoint
from saga_rl.policies.presets import PRESETS
from saga_rl.provenance import provenance

DECISION = "placement"
WEIGHTS = {"sticky": {"home": 2.0**30, "load": -1.0}}
"""By placement, in units of the raw columns."""
WIDE = 2.0**20
"""What columns are divided by: a power of two, so that nothing is rounded, and so large that nothing is clipped."""


def write_preset(folder: Path, preset: str, why: str, meta: Mapping[str, Any]) -> None:
    """Write `folder`/placement, which serves as `preset` does."""
    specs = PRESETS[preset]
    features = LEARNED_FEATURES[DECISION]
    weights = WEIGHTS[specs[DECISION]]
    row = np.array([[weights.get(name, 0.0) * WIDE for name in features]], np.float32)
    others: dict[str, str] = {d: specs[d] for d in DECISIONS if d != DECISION}
    source = provenance(seed=None, trace=None)
    card = "\n".join([
        f"# The preset `{preset}`, as a folder", "", f"Serves as `--policy {preset}` does. It was written in the place "
        f"of a learned policy because {why}.", "", f"The placement `{specs[DECISION]}` is written as a network of the "
        f"weights {', '.join(f'{name} {w:g}' for name, w in weights.items())}.", "", "## What runs beside it",
        *(f"- {d}: `{spec}`" for d, spec in others.items()), "",
        f"Written at commit {source['commit']}, version {source['version']}.", ""])
    save_checkpoint(folder / DECISION, DECISION, [(row, np.zeros(1, np.float32))], np.zeros(len(features)),
                    np.full(len(features), WIDE), card, {"algorithm": f"preset {preset}", "preset": preset, **meta,
                                             "source": source}, others)
