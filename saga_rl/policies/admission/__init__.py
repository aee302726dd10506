"""Admission: whether the request at the head of a queue may start. A file a policy; importing this package registers
them. Rivals and oracles: `policies.baselines`. May import `features`, `state` and `registry`."""

from saga_rl.policies.admission import none, reserve_older  # noqa: F401
