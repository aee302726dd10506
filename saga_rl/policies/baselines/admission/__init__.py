"""Admission policies that are compared with, one that knows the future among them. Importing this package registers
them. May import `policies.admission` and below."""

from saga_rl.policies.baselines.admission import (  # noqa: F401
    aimd,
    grow,
    limit,
    limit_live,
    pause_resume,
    reserve_clairvoyant,
)
