"""Compiles or loads everything compiled while the engine starts, so that no request pays for it."""

from __future__ import annotations

import numpy as np

from saga_rl.policies.fairness import afs
from saga_rl.policies.features import ORDERING, ordering_row
from saga_rl.runtime.admission import Admission
from saga_rl.runtime.tracker import NOBODY, Tracker, W
from saga_rl.runtime.victims import Victims


def warm_up(tracker: Tracker, victims: Victims, admission: Admission) -> None:
    """Call each compiled function once, on the types that requests will bring; changes no state that counts."""
    tracker.warm_up()
    chains, tables = tracker.chains, tracker.tables
    victims.scores([(NOBODY, 0.0, 1, 0.0)], 0, 0.0)
    tracker.g[:] = 0.0
    admission.fill(NOBODY, 1, 0, 0, np.zeros((1, 4)), np.zeros((1, 4)), 0.0, 0.0)
    ordering_row(chains, NOBODY, 0.0, 0.0, 1.0, 0.0, 0.0, np.zeros(len(ORDERING)))
    afs(chains, tables, W, np.zeros(1, np.int64), 1, 0.0, 0.1, np.zeros(1))
