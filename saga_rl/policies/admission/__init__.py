"""Admission policies: one file each; importing this package registers them."""

from saga_rl.policies.admission import aimd, grow, limit, limit_live, none, pause_resume, reserve_older  # noqa: F401
