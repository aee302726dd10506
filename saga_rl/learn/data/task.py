"""One episode to collect, and the trace it is played on. Everything about the episode follows from its task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import load_source
from saga_rl.policies.parameters import DEFAULT_PRESET, DEFAULT_PROFILE


@dataclass(frozen=True)
class Task:
    """One episode to collect."""

    trace: str
    """File."""
    kv_tokens: int
    behaviour: str
    """Policy spec of the decision; eviction: or `belady`."""
    epsilon: float
    seed: int
    max_rows: int = 32
    sessions: int = 0
    population: int = 0
    max_decisions: int = 0
    record: str = "lru"
    """Preset that records the reference string (eviction)."""
    profile: str | None = None
    decision: str = "eviction"
    workers: int = 1
    policies: str = DEFAULT_PRESET
    """Preset or checkpoint that decides the other decisions (closed loop)."""
    load: float = 1.0
    """Arrivals come so many times as fast as in the trace."""
    shuffle: bool = True
    """Another subset and order of the sessions for each episode; False: the trace as it is."""
    fractions: tuple[tuple[str, float], ...] = ()
    """Shares of the sessions by part, split by group; empty = no split."""
    part: str = ""
    """The part of the split that is played."""
    split_seed: int = 0
    ends: bool = False
    """Clients announce the end of a session."""

    def facts(self) -> dict[str, Any]:
        """What is written beside the episode: every field that says how it was played, but no path."""
        out = {"epsilon": self.epsilon, "kv_tokens": self.kv_tokens, "record": self.record, "part": self.part,
               "load": self.load, "workers": self.workers, "sessions": self.sessions, "population": self.population,
               "max_decisions": self.max_decisions, "max_rows": self.max_rows, "shuffle": int(self.shuffle),
               "split_seed": self.split_seed, "fractions": ",".join(f"{k}={v:g}" for k, v in self.fractions),
               "ends": int(self.ends)}
        return {**out, "profile": self.profile or DEFAULT_PROFILE,
                "policies": self.policies if self.decision != "eviction" else ""}


    def options(self) -> dict[str, Any]:
        """Name what an environment of the decision is made with, but for its trace (`saga_rl.env.settings`)."""
        out = {"kv_tokens": self.kv_tokens, "sessions": self.sessions, "population": self.population,
               "max_decisions": self.max_decisions, "profile": self.profile, "shuffle": self.shuffle,
               "config": {"end_hint": self.ends}}
        if self.decision == "eviction":
            return out | {"max_rows": self.max_rows, "record": self.record}
        out |= {"workers": self.workers, "policies": self.policies}
        return out if self.decision in ("placement", "admission") else out | {"max_rows": self.max_rows}

    def source(self) -> dict[str, Any]:
        """Name the trace as an environment does: the file, the part of it and the load."""
        return {"trace": self.trace, "load": self.load, "split": dict(self.fractions), "part": self.part,
                "split_seed": self.split_seed}


def trace_of(task: Task) -> Trace:
    """Read the task's part of its trace, at its load. Raises `UserError` as reading and splitting do."""
    return _trace(task.trace, task.fractions, task.part, task.split_seed, task.load)


@lru_cache(maxsize=16)
def _trace(path: str, fractions: tuple[tuple[str, float], ...], part: str, split_seed: int, load: float) -> Trace:
    return load_source(path, None, None, load=load, split=dict(fractions), part=part, split_seed=split_seed)


def with_trace(facts: dict[str, Any], trace: str, decision: str, behaviour: str) -> Task:
    """The task that wrote `facts` (`Task.facts` and `seed`), on the file `trace`, now to be played by `behaviour`."""
    parts = tuple((k, float(v)) for k, _, v in (item.partition("=") for item in
                                                filter(None, str(facts["fractions"]).split(","))))
    whole: dict[str, Any] = {k: int(facts[k]) for k in (
        "max_rows", "sessions", "population", "max_decisions", "workers", "split_seed")}
    # Datasets without "ends" are of the time when both had other defaults.
    profile = str(facts["profile"]) or "a100-llama3-70b-tp4"
    task = Task(trace, int(facts["kv_tokens"]), behaviour, 0.0, int(facts["seed"]), decision=decision,
                fractions=parts, **whole)
    return replace(task, record=str(facts["record"]), load=float(facts["load"]), part=str(facts["part"]),
                   shuffle=bool(facts["shuffle"]), profile=profile, ends=bool(facts.get("ends", 1)),
                   policies=str(facts["policies"]) or task.policies)
