"""Eviction policies that are compared with, references that know the future among them. Importing this package
registers them. May import `policies.eviction` and below."""

from saga_rl.policies.baselines.eviction import (  # noqa: F401
    arc,
    belady,
    clairvoyant,
    continuum,
    ends_known,
    greedy_dual,
    kvflow,
    lfu,
    lru_protect,
    returns_known,
    s3_fifo,
    tail_lru,
    ttl_online,
)
