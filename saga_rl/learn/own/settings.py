"""What `saga-rl learn` was asked for, and how much it spends."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saga_rl.policies.base import Decision
from saga_rl.policies.parameters import DEFAULT_PROFILE, EXPIRY_S

SHIPPED = Path(__file__).resolve().parents[3] / "checkpoints" / "joint-hidden"
"""Of a checkout; an installed package has none."""
FEWEST_SESSIONS, FEWEST_GROUPS, FEWEST_OF_A_PART = 30, 3, 4
WANTED = 2.0
"""Stock's time over that of infinite memory in the population that is taken unless one is named."""
NO_PRESSURE = 1.05
"""Below that there is nothing to win."""
SEARCH_ROUNDS, TEST_ROUNDS = 3, 4
"""Sessions of an episode for each that is alive at once."""


@dataclass(frozen=True)
class Spending:
    """How much a search does, and how many arrangements of test sessions judge.

    llm_steps: simulated LLM calls of all searches together, of which `fitted` makes fewer generations; 0: as it stands.
    """

    generations: int
    candidates: int
    episodes: int
    checks: int
    arrangements: int
    starts: int
    llm_steps: int = 0

    def runs(self, generations: int) -> int:
        """Episodes of one search: candidates, checks, finalists (`search.cma_es.search`), references included."""
        return (self.candidates + 1) * self.episodes * generations + self.checks * (generations // 4 + 3) + (
            5 * 4 * self.checks)

    def fitted(self, steps: float) -> int:
        """Generations that `llm_steps` hold where an episode has so many steps; 3 at least."""
        if not self.llm_steps:
            return self.generations
        each = self.llm_steps / self.starts / steps
        n = (each - self.runs(0)) / (self.runs(4) - self.runs(0)) * 4
        return max(3, min(self.generations, math.floor(n)))


QUICK = Spending(generations=8, candidates=8, episodes=1, checks=2, arrangements=8, starts=2, llm_steps=1_000_000)
FULL = Spending(generations=30, candidates=12, episodes=2, checks=4, arrangements=12, starts=3, llm_steps=7_000_000)


@dataclass(frozen=True)
class Settings:
    """All that the result depends on, beside the trace and the code."""

    profile: str = DEFAULT_PROFILE
    workers: int = 1
    kv_tokens: int = 0
    """KV pool of a worker; 0 = the profile's."""
    cpu_tokens: int = 0
    """Memory below the GPU of a worker, used as vLLM's own offloading does; 0 = none."""
    lazy_offload: bool = False
    """Policies of ours use that memory as `saga-rl serve --lazy-offload` does."""
    window: int = 0
    """Longest context of the model; 0 = its own where the profile names a model that is known, else the pool."""
    population: int = 0
    """Sessions alive at once on all workers; 0 = the one at which stock takes `WANTED` x as long as infinite memory."""
    load: float = 0.0
    """Open arrivals so many times as fast as the trace's; 0 = a closed population."""
    ends: bool = False
    """Clients say which request is a session's last."""
    expiry_s: float = EXPIRY_S
    max_num_seqs: int = 256
    max_batched_tokens: int = 0
    seed: int = 0
    anyway: bool = False
    spending: Spending = FULL

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What is searched: with one worker there is no placement."""
        joint: tuple[Decision, ...] = ("eviction", "ordering", "admission")
        return (*joint, "placement") if self.workers > 1 else joint

    def as_json(self) -> dict[str, Any]:
        """By name, for the head of a folder: other values are another experiment."""
        out = asdict(self)
        return {k: v for k, v in out.items() if k not in ("spending", "anyway")} | out["spending"]
