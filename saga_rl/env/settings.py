"""What an environment's options come to, checked: sessions, cluster, policies, rewards, spaces; and the vectors of
compiled code that play it. `KINDS` lists the sets of decisions that can be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check_fits
from saga_rl.env.episodes import load_source, pick, resample
from saga_rl.env.rewards import KINDS as REWARDS
from saga_rl.env.rewards import Rewards
from saga_rl.env.text import config_of, constraints_of
from saga_rl.errors import UserError, unknown_name
from saga_rl.policies.base import Policy, PolicySet
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.features import LEARNED_ADMISSION, LEARNED_EVICTION, LEARNED_ORDERING, LEARNED_PLACEMENT
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cluster import check_runs, make_fresh
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.script import Prepared, prepare
from saga_rl.sim.reference import Reference
from saga_rl.sim.stepping import book as bk
from saga_rl.sim.stepping import closed_slots as cs
from saga_rl.sim.stepping import replay_vector as rv
from saga_rl.sim.stepping.closed_rows import KINDS as WHICH
from saga_rl.sim.stepping.closed_vector import ClosedRunner
from saga_rl.sim.stepping.closed_view import ClosedView
from saga_rl.sim.stepping.replay_stepper import ReplayView
from saga_rl.sim.stepping.world_memory import Template

PLACE, ORDER, ADMIT, EVICT = (len(names) for names in (LEARNED_PLACEMENT, LEARNED_ORDERING, LEARNED_ADMISSION,
                                                       LEARNED_EVICTION))
BOUND, PLACEMENT_BOUND = 64.0, 1e6
"""Of columns. Shares are at most 1, log(1 + x) of any count or time is less than 64; placement also has raw counts."""
ATTEMPTS = 8
"""Arrangements tried before a reset gives up on finding one with a choice in it."""
OPEN = -1


@dataclass(frozen=True)
class Kind:
    """A set of decisions."""

    code: int
    """`closed_slots.KIND`, or `OPEN`."""
    columns: int
    workers: int
    """Unless given; it needs at least `least`."""
    least: int = 1
    rows: int = 0
    """Of an observation; 0: as `max_rows` says, -1: as many as workers."""
    holds: bool = False
    """The last row is the action of letting nobody in."""


KINDS: dict[str, Kind] = {
    "eviction": Kind(OPEN, EVICT, 1), "placement": Kind(cs.PLACEMENT, PLACE, 4, 2, -1),
    "ordering": Kind(cs.ORDER, ORDER, 1), "admission": Kind(cs.ADMIT, ADMIT, 1, rows=2, holds=True),
    "joint": Kind(cs.JOINT, ORDER + ADMIT, 1, holds=True),
    "scheduler": Kind(cs.SCHEDULER, WHICH + max(PLACE, ORDER + ADMIT, EVICT), 2, holds=True)}
CLOSED_ONLY = ("policies", "ordering", "admission", "p95_weight", "fairness_weight", "constraints", "workers")


class Episode(NamedTuple):
    """One arrangement, ready to be played."""

    trace: Trace
    made: Template | Prepared
    reference: Reference | None
    """Open loop: what was recorded of it."""
    segments: int


class Settings:
    """The options of a task.

    task: a key of `KINDS`. trace: a Trace or a file, or generator + params (`saga_rl.aeg.generators.generate`; `seed`
    may be among params); importer, load, split, part, split_seed: see `episodes.load_source`; sessions: of one episode,
    0 = all; shuffle: False plays the trace as it is; max_rows: candidates offered at most; max_decisions: an episode is
    cut after so many, 0 = never.

    config: a `SimConfig` or its fields by name: all of the cluster; kv_tokens and workers (KV of each, tokens),
    population (sessions alive at once, 0 = the trace's arrivals), profile (of costs, by name) and constraints
    (`policies.constraints`) override it. policies: the preset or checkpoint that decides what the agent does not;
    ordering, admission replace its policies there (specs). reward, p95_weight, fairness_weight: `env.rewards`.
    evict_blocks (scheduler): blocks that an eviction takes at least, if the candidate has them; 1 = as many as are
    wanted. record (eviction): preset that records the reference string.

    Raises `UserError` for a bad trace or option, and for one that the task does not have.
    """

    def __init__(self, task: str, trace: Trace | str | Path | None = None, kv_tokens: int | None = None, *,
                 generator: str | None = None, params: Mapping[str, Any] | None = None, importer: str | None = None,
                 load: float = 1.0, split: Mapping[str, float] | None = None, part: str = "", split_seed: int = 0,
                 sessions: int = 0, shuffle: bool = True, max_rows: int | None = None, max_decisions: int = 0,
                 config: SimConfig | Mapping[str, Any] | None = None, workers: int | None = None,
                 population: int | None = None, profile: str | None = None,
                 constraints: Constraints | Mapping[str, Any] | None = None, policies: str | None = None,
                 ordering: str | None = None, admission: str | None = None, reward: str | None = None,
                 p95_weight: float | None = None, fairness_weight: float | None = None,
                 evict_blocks: int | None = None, record: str | None = None) -> None:
        if task not in KINDS:
            raise unknown_name("task", task, KINDS)
        self.task, self.kind = task, KINDS[task]
        kind = self.kind
        given = {"policies": policies, "ordering": ordering, "admission": admission, "p95_weight": p95_weight,
                 "fairness_weight": fairness_weight, "constraints": constraints, "workers": workers}
        refused = [n for n in CLOSED_ONLY if kind.code == OPEN and given[n] is not None]
        refused += ["evict_blocks"] * (kind.code != cs.SCHEDULER and evict_blocks is not None)
        refused += ["record"] * (kind.code != OPEN and record is not None)
        if refused:
            raise UserError(refused[0], f"is no option of {task}", "leave it out, or choose another task")
        self.trace = load_source(trace, generator, params, importer=importer, load=load, split=split, part=part,
                                 split_seed=split_seed)
        self.sessions, self.shuffle, self.max_decisions = sessions, shuffle, max_decisions
        self.config = self._config(config, kv_tokens, workers, population, profile, constraints)
        check_fits(self.trace, kv_tokens=self.config.pool_blocks * self.config.block_tokens)
        self.max_rows, self.evict_blocks = self._rows(max_rows), 64 if evict_blocks is None else evict_blocks
        if self.evict_blocks < 1:
            raise UserError("evict_blocks", f"is {evict_blocks}", "give at least 1")
        if kind.code == OPEN and reward not in (None, "recomputed"):
            raise UserError("reward", f"is {reward!r}, but in open loop only what is computed again depends on choices",
                            "leave it out")
        self.rewards = Rewards(reward or ("recomputed" if kind.code == OPEN else "tct"), p95_weight or 0.0,
                               fairness_weight or 0.0)
        self.policies = preset(policies or DEFAULT_PRESET) if kind.code != OPEN else preset(record or "lru")
        """Of the run, but for what the agent decides; eviction: who records."""
        if ordering:
            self.policies = replace(self.policies, ordering=make("ordering", ordering))
        if admission:
            self.policies = replace(self.policies, admission=make("admission", admission))
        if kind.code == cs.SCHEDULER:
            check_eviction(self.policies.eviction)
        low = 0.0 if kind.code == cs.PLACEMENT else -BOUND
        high = PLACEMENT_BOUND if kind.code in (cs.PLACEMENT, cs.SCHEDULER) else BOUND
        self.observation_space = spaces.Box(low, high, (self.max_rows, kind.columns), np.float32)
        self.action_space = spaces.Discrete(self.max_rows)

    def _config(self, config: Any, kv_tokens: int | None, workers: int | None, population: int | None,
                profile: str | None, constraints: Any) -> SimConfig:
        base = config_of(config)
        if workers is None and not (isinstance(config, SimConfig) or (config and "workers" in config)):
            workers = self.kind.workers
        shortcuts: dict[str, Any] = {"kv_tokens": kv_tokens, "workers": workers, "population": population}
        if profile is not None:
            shortcuts["profile"] = load_profile(profile)
        if constraints is not None:
            shortcuts["constraints"] = constraints_of(constraints)
        workers = base.workers if workers is None else workers
        if workers < self.kind.least:
            raise UserError("workers", f"is {workers}", f"{self.task} needs at least {self.kind.least}")
        made = replace(base, **{k: v for k, v in shortcuts.items() if v is not None})
        if made.async_scheduling and self.kind.code not in (OPEN, cs.PLACEMENT):
            raise UserError("async_scheduling", "is on, but this environment decides between iterations",
                            "leave it off where queues and evictions are decided")
        return made

    def _rows(self, max_rows: int | None) -> int:
        fixed = self.config.workers if self.kind.rows < 0 else self.kind.rows
        if fixed:
            if max_rows not in (None, fixed):
                why = "admission has 2 rows: the head of the queue, and hold" if self.kind.rows > 0 else (
                    "placement has a row a worker: leave it out")
                raise UserError("max_rows", f"is {max_rows}", why)
            return fixed
        rows, least = 32 if max_rows is None else max_rows, 2
        if self.kind.code == cs.SCHEDULER:
            least = max(3, self.config.workers)
        if rows < least:
            raise UserError("max_rows", f"is {rows}", f"give at least {least}")
        return rows

    @property
    def played(self) -> PolicySet:
        """The policies as the run holds them: where the agent decides by rows, all columns are made."""
        made = self.policies
        if self.kind.code != cs.PLACEMENT:
            made = replace(made, admission=replace(made.admission, informed=True))
        if self.kind.code == cs.SCHEDULER:
            made = replace(made, eviction=replace(made.eviction, informed=True, scaled=True))
        return made

    def arranged(self, rng: np.random.Generator, ids: Sequence[str | int] | None = None) -> Trace:
        """Draw an episode's sessions and arrivals, or of the sessions `ids`. Raises `UserError`."""
        if ids is not None:
            return pick(self.trace, rng if self.shuffle else None, ids)
        return resample(self.trace, rng, self.sessions) if self.shuffle else self.trace

    def episode(self, trace: Trace) -> Episode:
        """Make ready what was arranged. Raises `UserError` for sessions that do not fit."""
        if self.kind.code == OPEN:
            reference = record_reference(trace, self.config, self.policies)
            made = prepare(reference, reference.kv_tokens)
            return Episode(trace, made, reference, len(made.tree.parent))
        check_runs(trace, self.config, self.played)
        world = make_fresh(trace, self.config, self.played, 0, 0, 0)
        return Episode(trace, Template(world), None, len(world.tree.parent))

    def runner(self, envs: int, pool: Sequence[Episode], mode: int, threads: int = 1) -> ClosedRunner | rv.ReplayRunner:
        """Make the vector of `envs` slots that plays the episodes of `pool`, shared by so many threads; mode: of
        autoreset, see `sim.stepping.book`."""
        kind, made, shape = self.kind.code, [e.made for e in pool], self.observation_space.shape
        if kind == OPEN:
            slots = rv.make_slots(envs, self.max_rows, EVICT, len(pool), mode, self.max_decisions, self.config.end_hint,
                                  self.config.expiry_s)
            lru = replace(make("eviction", "lru"), informed=True)
            return rv.ReplayRunner(slots, made, lru, threads)  # type: ignore[arg-type]
        rules = (mode, self.max_decisions, kind, REWARDS[self.rewards.kind], self.evict_blocks)
        real = (self.rewards.p95_weight, self.rewards.fairness_weight, float(self.observation_space.low.min()),
                float(self.observation_space.high.max()))
        closed = cs.make_slots(envs, shape, len(pool), max(e.trace.n_sessions for e in pool),
                               max(e.segments for e in pool), rules, real)
        return ClosedRunner(closed, made, self.played, threads)  # type: ignore[arg-type]

    def set_prices(self, slots: Any) -> None:
        """Give compiled code the prices as they are now."""
        if self.kind.code != OPEN:
            slots.real[cs.P95_WEIGHT], slots.real[cs.FAIRNESS_WEIGHT] = (self.rewards.p95_weight,
                                                                         self.rewards.fairness_weight)

    def view(self, runner: Any, b: int = 0) -> ClosedView | ReplayView:
        """Look at slot b: rows before they are clipped, and the run itself."""
        return ReplayView(runner, b) if self.kind.code == OPEN else ClosedView(runner, b)

    def begun(self, rng: np.random.Generator, ids: Sequence[str | int] | None = None) -> tuple[Episode, Any]:
        """Arrange an episode that has a choice in it, and the vector of one that stands at its first decision.

        Raises `UserError` if none of `ATTEMPTS` arrangements has one.
        """
        for _ in range(ATTEMPTS if self.shuffle else 1):
            episode = self.episode(self.arranged(rng, ids))
            runner = self.runner(1, [episode], bk.BY_HAND)
            runner.reset(np.ones(1, np.bool_))
            if not runner.slots.book[0, bk.OVER]:
                return episode, runner
        raise self.no_choice()

    def no_choice(self) -> UserError:
        """Say that nothing ever has to be decided."""
        if self.kind.code == OPEN:
            return UserError("kv_tokens", f"of {self.config.kv_tokens} never runs out in the episodes tried",
                             "lower kv_tokens, or take more sessions or a larger population")
        return UserError("population", f"of {self.config.population} leaves nothing to choose in a queue",
                         "raise it, or the load, or lower kv_tokens")


def check_eviction(policy: Policy) -> None:
    """Raise `UserError` for a policy that cannot stand in for an agent that evicts."""
    for what, wrong in (("remembers what it evicted", policy.memory), ("must know the future", policy.oracle),
                        ("frees chains when their TTL runs out", policy.drop_expired)):
        if wrong:
            raise UserError(f"eviction policy {policy.name!r}", f"{what}, but here the agent evicts",
                            "name policies with another one, such as lru or saga+")
