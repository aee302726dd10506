"""What is measured: arms, sessions, pressures, and the engines' limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from saga_rl.errors import UserError, unknown_name

STOCK, INFINITE, OWN = "stock", "infinite", "own"
TRAINED, HELD_OUT = ("train",), ("validation", "test")
"""Parts of a source (`saga_rl.learn.workloads.PARTS`): what `own` is searched on, and what runs draw."""


@dataclass(frozen=True)
class Arm:
    """One way of serving. policy: what `saga-rl serve --policy` gets, or policies by seam; priority: vLLM's own
    priority queue, every request with the number of its session's start; whole: a pool that holds everything."""

    policy: str | dict[str, str]
    says: str
    priority: bool = False
    whole: bool = False


ARMS: dict[str, Arm] = {
    STOCK: Arm("stock", "vLLM, no hooks"),
    "sticky": Arm("lru", "vLLM's eviction and order; a session stays on its engine"),
    "priority": Arm("stock", "vLLM --scheduling-policy priority, priority = session start", priority=True),
    "saga": Arm("saga", "the paper's policy"),
    "saga+": Arm("saga+", "the strongest heuristics: youngest, session-fcfs, reserve-older"),
    "likely": Arm("likely", "the best rules found by hand for ends that nobody tells"),
    "checkpoint": Arm("checkpoints/joint-hidden", "the shipped joint checkpoint for ends that nobody tells"),
    OWN: Arm("runs/serving_gain/own/checkpoint", "searched here on sessions that no run draws"),
    INFINITE: Arm("lru", "sticky, with a pool that holds everything", whole=True),
}


@dataclass(frozen=True)
class Source:
    """Real sessions and the factors that bring them down to the model. `file` lies below the data folder."""

    name: str
    importer: str
    file: str
    length_factor: float
    time_factor: float


CPU_SOURCES = (
    Source("weka", "weka", "weka_claude_code/traces.jsonl.gz", 1 / 64, 1 / 20),
    Source("katas", "katas", "claude_code_katas/calls.jsonl.gz", 1 / 24, 1 / 10),
)
"""Times are scaled about as the prefill of a scaled context is: 80,000 tokens at 8,000/s on a GPU, 3,300 at 3,500/s
here, are 10 s and 1 s. With gaps left as they were, tools would be all that a session waits for."""


@dataclass(frozen=True)
class Setup:
    """One measurement. The defaults are sized for two quiet cores and an hour."""

    arms: tuple[str, ...] = tuple(ARMS)
    pressures: tuple[float, ...] = (1.4, 2.5)
    """Live demand for KV over the pool of all engines."""
    repeats: int = 5
    seed: int = 0
    sources: tuple[Source, ...] = CPU_SOURCES
    sessions: int = 48
    """A run; the same number of each source, drawn anew for each repeat from its held-out parts."""
    alive: int = 30
    """Sessions alive at once: the next one starts when one ends."""
    steps: tuple[int, int] = (4, 20)
    """Sessions of so many steps are drawn."""
    longest_gaps_s: float = 400.0
    """Sessions whose tools and users take longer in all (recorded seconds, before scaling) are not drawn."""
    engines: int = 2
    max_context: int = 4096
    """Sessions with a longer context after scaling are not drawn."""
    block_tokens: int = 32
    max_num_seqs: int = 32
    max_batched_tokens: int = 2048
    expiry_s: float = 15.0
    """Our scheduler's --expiry-s (300 s by default), scaled as the gaps are."""
    ends: bool = False
    """Clients tell the last request of an agent (`saga_final`)."""
    slo: float = 1.5
    """A session is in time if it took at most so many times what it took with infinite memory."""
    dtype: str = "float32"
    eager: bool = True
    """No CUDA graphs; on a CPU there are none."""
    policies: tuple[tuple[str, str], ...] = ()
    """(arm, policy) where an arm is to run another policy than `ARMS` says."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            if arm not in ARMS:
                raise unknown_name("arm", arm, ARMS)
        if STOCK not in self.arms or len(self.arms) < 2:
            raise UserError("--arms", "lacks stock or an arm to compare with it", "name stock and at least one more")
        if self.sessions < len(self.sources) or self.sessions % len(self.sources):
            raise UserError("--sessions", f"is {self.sessions}, which {len(self.sources)} sources cannot share evenly",
                            f"give a multiple of {len(self.sources)}")
        if not self.pressures or min(self.pressures) <= 0 or self.repeats < 1 or self.alive < 1:
            raise UserError("settings", "pressures must be above 0, repeats and alive at least 1", "correct them")

    @property
    def model_len(self) -> int:
        return self.max_context + self.block_tokens

    def policy(self, arm: str) -> str | dict[str, str]:
        return dict(self.policies).get(arm, ARMS[arm].policy)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
