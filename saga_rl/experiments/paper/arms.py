"""Which policies stand for a system of the paper, and how its own design is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Specs = dict[str, str]
TIER_POOLS = 1.0
"""CPU memory behind SAGA's prefetch, pools of a worker: the paper names neither a budget nor a source."""
PREFETCH_TOKENS = 65_536
LINK_TOKENS_PER_S = 230_000.0
"""KV between workers: a context of 53,000 tokens, SWE-bench's mean, in the paper's 230 ms."""


@dataclass(frozen=True)
class Arm:
    """A system.

    specs: the four decisions, or a preset or checkpoint under `set`. config: fields of `SimConfig` that are its own.
    pools: CPU memory of a worker in pools of its GPU's. says: what stands for it, in a sentence.
    """

    specs: Specs
    says: str
    config: dict[str, Any] = field(default_factory=dict)
    pools: float = 0.0


def _specs(eviction: str, placement: str, ordering: str, admission: str = "none") -> Specs:
    return {"eviction": eviction, "placement": placement, "ordering": ordering, "admission": admission}


MOVES = {"link_tokens_per_s": LINK_TOKENS_PER_S}
PREFETCH = {"prefetch_tokens": PREFETCH_TOKENS}
WRITTEN = Arm(_specs("wa-lru-literal", "saga:theta=0.8,steal=1", "afs"),
              "TTLs drop KV, theta .8, stealing; KV moves with its session, prefetch from one pool of CPU memory",
              MOVES | PREFETCH, TIER_POOLS)
READ = Arm(_specs("wa-lru", "saga:theta=100,steal=1", "afs"), "our reading: a TTL ranks and drops nothing, theta 100",
           MOVES | PREFETCH, TIER_POOLS)


def without(arm: Arm, decision: str = "", spec: str = "", **config: Any) -> Arm:
    """The arm with another policy for one decision, or other fields of its configuration."""
    specs = arm.specs | ({decision: spec} if decision else {})
    return Arm(specs, arm.says, arm.config | config, arm.pools)


ARMS: dict[str, Arm] = {
    "vllm": Arm({"set": "lru"}, "LRU, a session stays on its worker, first come first served"),
    "vllm-uncached": Arm(_specs("lru", "least-load", "fcfs"),
                         "nothing is kept for a later prompt, least load; the engine is else today's, not vLLM 0.6's",
                         {"prefix_caching": False}),
    "sglang": Arm(_specs("lru", "prefix-aware", "dlpm:quantum=1e9"), "LRU, cache-aware router, longest prefix first"),
    "llumnix": Arm(_specs("lru", "least-load", "fcfs"), "LRU, least load, KV moves with its session", MOVES),
    "kvflow": Arm(_specs("kvflow", "sticky", "fcfs"),
                  "steps to execution, prefetch from one pool of CPU memory", PREFETCH, TIER_POOLS),
    "breadth-first": Arm(_specs("lru", "least-load", "fcfs"), "LRU, least load, first come first served"),
    "saga-written": WRITTEN, "saga-read": READ,
    "saga": Arm({"set": "saga"}, "the preset: our reading, with neither CPU memory, moves nor stealing"),
    "likely": Arm({"set": "likely"}, "the preset"), "auto": Arm({"set": "auto"}, "the preset that serves by default"),
    "read: no WA-LRU": without(READ, "eviction", "lru"), "written: no WA-LRU": without(WRITTEN, "eviction", "lru"),
    "read: no TTL": without(READ, "eviction", "wa-lru:ttl=0"),
    "read: no prefetch": without(READ, prefetch_tokens=0), "written: no prefetch": without(WRITTEN, prefetch_tokens=0),
    "read: no affinity": without(READ, "placement", "least-load"),
    "written: no affinity": without(WRITTEN, "placement", "least-load"),
    "read: no stealing": without(READ, "placement", "saga:theta=100"),
    "written: no stealing": without(WRITTEN, "placement", "saga:theta=0.8"),
    "read: no AFS": without(READ, "ordering", "fcfs"), "written: no AFS": without(WRITTEN, "ordering", "fcfs")}
"""By the word that a cell's spec has. A checkpoint's folder is an arm by its path."""


def arm_of(name: str) -> Arm:
    """The arm of that word, or of the checkpoint in that folder."""
    return ARMS.get(name) or Arm({"set": name}, "the checkpoint")
