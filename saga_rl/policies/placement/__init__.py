"""Placement: which worker serves a request. A file a policy; importing this package registers them. Rivals:
`policies.baselines`. May import `features`, `state` and `registry`."""

from saga_rl.policies.placement import least_sessions, saga, sticky  # noqa: F401
