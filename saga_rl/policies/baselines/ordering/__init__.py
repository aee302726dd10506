"""Ordering policies that are compared with. Importing this package registers them."""

from saga_rl.policies.baselines.ordering import dlpm, las, srpt, vtc  # noqa: F401
