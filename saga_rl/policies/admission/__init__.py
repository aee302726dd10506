"""Admission policies: one file each; importing this package registers them."""

from saga_rl.policies.admission import (  # noqa: F401
    aimd,
    grow,
    learned,
    limit,
    limit_live,
    none,
    pause_resume,
    reserve_clairvoyant,
    reserve_older,
)
