"""Admission policies: one file each; importing this package registers them."""

from saga_rl.policies.admission import grow, none, reserve_older  # noqa: F401
