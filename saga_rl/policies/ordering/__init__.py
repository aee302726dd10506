"""Ordering policies: one file each; importing this package registers them."""

from saga_rl.policies.ordering import afs, fcfs, session_fcfs  # noqa: F401
