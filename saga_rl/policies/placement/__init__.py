"""Placement policies: one file each; importing this package registers them."""

from saga_rl.policies.placement import (  # noqa: F401
    consistent_hash,
    learned,
    least_load,
    least_sessions,
    power_of_two,
    prefix_aware,
    round_robin,
    saga,
    sticky,
)
