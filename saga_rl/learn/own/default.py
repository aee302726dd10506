"""A preset as a folder that serves: its ordering written as a network of one weight, the rest named beside it.

A checkpoint holds weights, and a preset has none. But both orderings of the presets that are safe order by one column:
`session-fcfs` by a session's age, `fcfs` by a request's wait, the logarithm of which a network reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saga_rl.learn.search.parameter_vector import ParameterVector, scales
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.learned.checkpoint import LEARNED_FEATURES, save_checkpoint
from saga_rl.policies.presets import PRESETS
from saga_rl.provenance import provenance

DECISION = "ordering"
COLUMN = {"session-fcfs": "age_log", "fcfs": "wait_log"}


def write_preset(folder: Path, preset: str, why: str, meta: Mapping[str, Any]) -> None:
    """Write `folder`/ordering, which serves as `preset` does."""
    specs = PRESETS[preset]
    features = LEARNED_FEATURES[DECISION]
    vector = ParameterVector((DECISION,))
    theta = vector.start({DECISION: {COLUMN[specs[DECISION]]: -1.0}})
    others: dict[str, str] = {d: specs[d] for d in DECISIONS if d != DECISION}
    source = provenance(seed=None, trace=None)
    card = "\n".join([
        f"# The preset `{preset}`, as a folder", "", f"Serves as `--policy {preset}` does. It was written in the place "
        f"of a learned policy because {why}.", "", f"The ordering `{specs[DECISION]}` is written as a network of one "
        f"weight: {COLUMN[specs[DECISION]]}, largest first.", "", "## What runs beside it",
        *(f"- {d}: `{spec}`" for d, spec in others.items()), "",
        f"Written at commit {source['commit']}, version {source['version']}.", ""])
    save_checkpoint(folder / DECISION, DECISION, vector.layers(DECISION, theta), np.zeros(len(features)),
                    scales(features), card, {"algorithm": f"preset {preset}", "preset": preset, **meta,
                                             "source": source}, others)
