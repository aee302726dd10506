"""Eviction policies: one file each; importing this package registers them."""

from saga_rl.policies.eviction import belady, learned, lru, lru_protect, wa_lru, wa_lru_literal, youngest  # noqa: F401
