"""Eviction policies: one file each; importing this package registers them."""

from saga_rl.policies.eviction import (  # noqa: F401
    arc,
    bayes_tables,
    belady,
    clairvoyant,
    continuum,
    ends_known,
    greedy_dual,
    kvflow,
    learned,
    lfu,
    lru,
    lru_protect,
    returns_known,
    s3_fifo,
    tail_lru,
    ttl_online,
    wa_lru,
    wa_lru_literal,
    youngest,
)
