"""Placement policies that are compared with. Importing this package registers them.
May import `policies.placement` and below."""

from saga_rl.policies.baselines.placement import (  # noqa: F401
    consistent_hash,
    least_load,
    power_of_two,
    prefix_aware,
    round_robin,
)
