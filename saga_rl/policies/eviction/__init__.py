"""Eviction: whose idle KV blocks go first. A file a policy; importing this package registers them. Rivals and oracles:
`policies.baselines`. May import `features`, `state` and `registry`."""

from saga_rl.policies.eviction import bayes_tables, lru, wa_lru, wa_lru_literal, youngest  # noqa: F401
