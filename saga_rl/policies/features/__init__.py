"""The feature rows of the four decisions: the one place where observations are made, a file a decision.

Simulator, environments and vLLM adapter call these functions, so a policy sees in service what it was trained on. What
a decision's features compute is hashed into every checkpoint (`feature_hash`). Rows are float64; seconds and tokens
enter learned policies as log(1 + x), raw values stay beside them for the heuristics. The ORACLE column is NaN for every
policy that does not declare `oracle=True`. May import `state` and `base`.
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
from saga_rl.policies.features.tier import *  # noqa: F403

COLUMNS = {"eviction": len(EVICTION), "placement": len(PLACEMENT), "ordering": len(ORDERING),
           "admission": len(ADMISSION)}
"""Width of a row of each decision."""

EARLIER_HASHES: dict[str, tuple[str, ...]] = {
    "390ad1bc0e55dc6b11aeafe26b02bfcc5afaf815831ad4b86c104c799a6c7a6c":
        ("53b9635555520ce5d3bf7ea4d32afd4204618bd041811a54cb6a27474bbba2a5",),  # eviction
    "d4470140b1941c315291a6b460da7c5c65407be40701f420325e8ce2bcff72b6":
        ("036d47be7975447d0d20b5e3c1be32cc552f4c1ae2c1a3c92fde7a97a45ce015",),  # placement
    "f6ad649d44a63e04d4f9c8e08272c62a63fd3676f3ba5b6e1a20f710a02a6387":
        ("26a399d40edddf3f555f6b6bccd135f57dad6e38443cc19607969b8846dbf105",),  # ordering
    "3d3010a8fb38f3093921a636973fa7498f8e6639b188f27cacc5d79fc8042160":
        ("d8072529043bfcf0ad0df607bc023a2d744cb84aa8fc9261ea9218d13e2b09ea",),  # admission
    "f083a4de56e1c071957ba18c04c041a0b25725ab9f8287d4c80256e576feb6b5":
        ("0e264842c6edb78f627437fec3919b7785d099b690284b776a580f41ffcc4cb5",),  # tables
}
"""Hashes that earlier releases gave what is computed here, by today's (`feature_hash`, `tables_hash`): they hashed
source code. What was written under one of them is as good as new."""


def same_hash(written: object, today: str) -> bool:
    """Return whether a hash that a file carries stands for what is computed today."""
    return written == today or written in EARLIER_HASHES.get(today, ())
