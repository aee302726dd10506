"""Eviction policies: one file each; importing this package registers them."""

from saga_rl.policies.eviction import lru  # noqa: F401
