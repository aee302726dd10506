"""What the protocol runs, with which budgets, against which targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError, unknown_name
from saga_rl.experiments.compare.settings import FIRST_SEED
from saga_rl.policies.presets import PRESETS

Arm = dict[str, Any]
ROWS = ("eviction", "stock", "shift", "hidden", "sustain", "placement", "throughput", "transfer", "drift")
TRAIN_SEEDS = (1, 2)
"""Every setting of a baseline is tried on these arrangements of the training sessions."""
TARGETS: dict[str, float] = {
    "eviction/swe": 1.01, "eviction/burst": 1.01, "eviction/web": 1.08, "eviction/hitl": 1.09, "eviction/hetero": 1.05,
    "eviction/recorded": 0.5, "stock/mean": 1 / 1.8, "stock/p95": 1.0, "shift/mean": 0.58, "shift/p95": 0.80,
    "hidden/mean": 0.92, "hidden/p95": 1.0, "hidden/share": 0.5, "sustain": 1.6, "placement": 0.97, "throughput": 1.0}

STOCK: Arm = dict(PRESETS["lru"])
INFINITE: Arm = STOCK | {"infinite": True}
RESERVE: Arm = {"eviction": "youngest", "placement": "least-sessions", "ordering": "session-fcfs",
                "admission": "reserve-older"}
ORACLE: Arm = {"eviction": "clairvoyant", "placement": "least-sessions", "ordering": "session-fcfs",
               "admission": "reserve-clairvoyant"}
EVICTIONS = ("lru", "lru-protect", "s3-fifo", "arc", "lfu", "greedy-dual", "tail-lru", "kvflow", "continuum",
             "bayes-tables", "wa-lru", "wa-lru-literal", "youngest")
"""Every registered heuristic; of those with parameters as many settings as the budget allows (`experiments.tuning`)."""


def reserve_grid() -> list[Arm]:
    """Reserve-older tuned: whether chains that may have ended count in part, expiry, eviction beside it."""
    return [RESERVE | {"admission": f"reserve-older{likely}", "expiry_s": expiry, "eviction": eviction}
            for expiry in (300.0, 60.0, 1000.0) for likely in ("", ":likely=1")
            for eviction in (f"youngest:expiry_s={expiry:g}", "bayes-tables", "wa-lru")]


def limit_grid() -> list[Arm]:
    """A fixed limit tuned: sessions under way, or their share of the pool; under both orders."""
    limits = [f"limit-live:share={x:g}" for x in (1.0, 0.75, 1.25, 0.5, 1.5, 2.0)]
    limits += [f"limit:sessions={n}" for n in (8, 12, 6, 16, 10, 20, 4, 24)]
    return [STOCK | {"eviction": "lru-protect", "placement": "least-sessions", "ordering": order, "admission": limit}
            for limit in limits for order in ("session-fcfs", "fcfs")]


SAGA_PLACEMENTS = ("saga:theta=100", "saga:theta=100,steal=1", "saga:theta=20", "saga:theta=20,steal=1",
                   "saga:theta=1.5,steal=1", "saga:theta=5,steal=1", "saga:theta=5", "saga")


@dataclass(frozen=True)
class Settings:
    """One report. The policies under test are a folder or a spec; empty: there is none, its rows are left out."""

    eviction: str
    placement: str
    joint: str
    """Folder of the admission checkpoint (it names the rest), or a preset."""
    hidden: str = ""
    """The same, for places where nobody announces ends; empty: `joint`."""
    transfer: tuple[str, ...] = ()
    own: tuple[tuple[str, str], ...] = ()
    """(recorded collection, folder searched on its own training sessions with ends hidden)."""
    rows: tuple[str, ...] = ROWS
    seeds: int = 5
    budget: int = 18
    """Settings tried of each closed-loop baseline."""
    tune: int = 5
    """Settings tried of each eviction heuristic with parameters."""
    rounds: int = 4
    """Sessions of a run for each that is alive at once."""
    workers: int = 4
    many_workers: int = 16
    """Of the rows against stock and of placement."""
    data: str = ""
    recorded: tuple[str, ...] = ()
    only: tuple[str, ...] = field(default=())
    """Workloads; empty = all."""

    @property
    def test_seeds(self) -> range:
        return range(FIRST_SEED, FIRST_SEED + self.seeds)

    def named(self, *names: str) -> list[str]:
        """Those workloads of `names` that were asked for."""
        return [n for n in names if not self.only or n in self.only]

    def joint_arm(self, hidden: bool = False) -> Arm:
        """hidden: where nobody announces ends."""
        return {"set": self.hidden or self.joint if hidden else self.joint}

    def eviction_spec(self) -> str:
        return _spec(self.eviction)

    def placement_spec(self) -> str:
        return _spec(self.placement)


def _spec(given: str) -> str:
    """A folder as the spec of the checkpoint in it; anything else is a spec, or nothing, as it stands."""
    return f"learned:{given}" if given and Path(given).is_dir() else given


def check(s: Settings) -> None:
    """`UserError` for a row, folder, policy or preset that does not exist, before anything is run."""
    from saga_rl.experiments.closed import policies_of
    from saga_rl.policies.registry import make

    for row in s.rows:
        if row not in ROWS:
            raise unknown_name("row", row, ROWS)
    for decision, spec, text in (("eviction", s.eviction_spec(), s.eviction), ("placement", s.placement_spec(),
                                                                         s.placement)):
        if text:
            make(decision, spec)  # type: ignore[arg-type]
    if s.joint:
        policies_of(s.joint_arm())
        policies_of(s.joint_arm(hidden=True))
    for name, folder in s.own:
        if name not in s.recorded:
            raise unknown_name("recorded collection (--own)", name, s.recorded)
        policies_of({"set": folder})
    for folder in s.transfer:
        if not Path(folder).is_dir():
            raise UserError(folder, "is no folder of a checkpoint", "name folders of checkpoints after --transfer")
