"""The feature rows of the four seams: the one place where observations are made, a file a seam.

Simulator, environments and vLLM adapter call these functions, so a policy sees in service what it was trained on. What
a decision's features compute is hashed into every checkpoint (`feature_hash`). Rows are float64; seconds and tokens
enter learned policies as log(1 + x), raw values stay beside them for the heuristics. The ORACLE column is NaN for every
policy that does not declare `oracle=True`.
"""

from __future__ import annotations

from saga_rl.policies.features.admission import *  # noqa: F403
from saga_rl.policies.features.admission import ADMISSION
from saga_rl.policies.features.eviction import *  # noqa: F403
from saga_rl.policies.features.eviction import EVICTION
from saga_rl.policies.features.fingerprint import feature_hash as feature_hash
from saga_rl.policies.features.fingerprint import tables_hash as tables_hash
from saga_rl.policies.features.ordering import *  # noqa: F403
from saga_rl.policies.features.ordering import ORDERING
from saga_rl.policies.features.placement import *  # noqa: F403
from saga_rl.policies.features.placement import PLACEMENT
from saga_rl.policies.features.pools import *  # noqa: F403

COLUMNS = {"eviction": len(EVICTION), "placement": len(PLACEMENT), "ordering": len(ORDERING),
           "admission": len(ADMISSION)}
"""Width of a row of each seam."""

EARLIER_HASHES: dict[str, tuple[str, ...]] = {
}
"""Hashes that earlier releases gave what is computed here, by today's (`feature_hash`, `tables_hash`): they hashed
source code. What was written under one of them is as good as new."""


def same_hash(written: object, today: str) -> bool:
    """Return whether a hash that a file carries stands for what is computed today."""
    return written == today or written in EARLIER_HASHES.get(today, ())
