"""Placement policies: one file each; importing this package registers them."""

from saga_rl.policies.placement import learned, least_load, saga, sticky  # noqa: F401
