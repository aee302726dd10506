"""What an experiment is made of, with its defaults and the rules that a reader of its figures has to know."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saga_rl.policies.parameters import DEFAULT_PROFILE

if TYPE_CHECKING:
    from saga_rl.policies.constraints import Constraints

PARTS = ("eviction", "load", "fairness")
STOCK = "lru"
FIRST_SEED = 1000
"""Reported arrangements are those of FIRST_SEED, FIRST_SEED + 1, ..."""
TRAIN_SEEDS = (1, 2, 3)
"""Scouting and tuning use these, on the training half of the sessions."""
SUSTAINED = 1.3
"""A load is sustained while stock's mean TCT is at most so many times that of infinite memory."""
P1_RATIO, P1_RANGE = 2.5, (1.8, 3.5)
"""The pressure point P1 is the capacity at which LRU computes again nearest to P1_RATIO x what Belady does."""
MARGIN = 1.1
"""A capacity is at least so many times the longest context."""
SMALLEST_KV = 240_000
PLAIN_BELOW = 100.0
"""A capacity below this is a multiple of P1's, else tokens."""


@dataclass(frozen=True)
class Settings:
    """One experiment. Empty tuples mean the default choice."""

    parts: tuple[str, ...] = PARTS
    specs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Decision -> the specs that the user named."""
    presets: tuple[str, ...] = ()
    capacities: tuple[float, ...] = (0.6, 0.8, 1.0, 1.25)
    loads: tuple[float, ...] = (0.7, 1.0, 1.4)
    """Arrival rate over the one that the stock arrangement sustains."""
    seeds: int = 5
    tune: int = 3
    """Settings tried of each tunable policy; 0 = every policy at its defaults, and no picked combinations."""
    workers: int = 4
    kv_tokens: int = 0
    """KV pool of one worker of the load and fairness parts; 0 = `pool_tokens`."""
    population: int = 16
    """Sessions alive at once where the reference strings of the eviction part are recorded."""
    product: bool = False
    """Load part: every placement x ordering x admission instead of one factor at a time."""
    gap_tokens: float = 20_000.0
    floor: float = 0.03
    afs_preempt_s: float = 0.5
    profile: str = DEFAULT_PROFILE
    ends: bool = False
    """Clients say which step is their last."""

    @property
    def test_seeds(self) -> range:
        return range(FIRST_SEED, FIRST_SEED + self.seeds)

    @property
    def tune_load(self) -> float:
        """The load at which parameters are tuned and combinations picked: the middle one."""
        return sorted(self.loads)[len(self.loads) // 2]

    @property
    def fair_loads(self) -> tuple[float, ...]:
        """Fairness needs contention: the loads from 1 on, or the highest."""
        return tuple(x for x in self.loads if x >= 1) or (max(self.loads),)

    def variants(self) -> dict[str, dict[str, Any]]:
        """Fairness part: label -> arguments of `Constraints`."""
        gap = {"service_gap_tokens": self.gap_tokens}
        floors = gap | {"kv_floors": {"*": self.floor}}
        return {"none": {}, "gap": gap, "gap+floors": floors,
                "gap+floors+afs": floors | {"afs_preempt_s": self.afs_preempt_s}}


def constraints(arguments: dict[str, Any]) -> Constraints:
    """Raises `UserError` for values out of range."""
    from saga_rl.policies.constraints import Constraints

    return Constraints(**arguments)


def pool_tokens(longest: int, wanted: int) -> int:
    """`wanted`, or SMALLEST_KV, or MARGIN times the longest context of the trace where that is more; whole blocks."""
    return wanted or max(SMALLEST_KV, math.ceil(round(MARGIN * longest, 3) / 16) * 16)
