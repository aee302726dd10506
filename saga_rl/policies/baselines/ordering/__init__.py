"""Ordering policies that are compared with. Importing this package registers them.
May import `policies.ordering` and below."""

from saga_rl.policies.baselines.ordering import dlpm, las, srpt, vtc  # noqa: F401
