"""A mix that changes: every `period_s` other shares of the workloads' agents, at another arrival rate.

`phases` of them, then the first again. Phase k's arrivals are Poisson at .8 (even phases) or .9 (odd ones) of a peak;
what arrives is drawn by the phase's shares. Shares are of *work*, not of sessions, so that a phase of long sessions
does not ask for more than one of short ones: a session's work is its mean tokens appended, plus `OUTPUT_WORK` for each
generated one. `rate_per_min` is the peak: sessions a minute, each of the mean work of all kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.generators import burstgpt, hetero, swe_bench, webarena
from saga_rl.aeg.generators.agents import AgentType, Params, Source, agents_at
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError

LEVELS = (0.8, 0.9)
OUTPUT_WORK = 8.0
"""Work of a generated token over that of a prompt token: an iteration of 25 ms over some twenty sequences makes one
each, prefill takes 1 / 6,000 s a token."""
_KINDS: dict[str, tuple[AgentType, ...]] = {
    "swe": (swe_bench.AGENT,), "web": (webarena.AGENT,), "hetero": hetero.AGENTS,
    "burst": tuple({s.agent.name: s.agent for s in burstgpt.sources()}.values())}
MIXES: tuple[dict[str, float], ...] = ({"swe": 0.6, "web": 0.2, "burst": 0.2}, {"web": 0.6, "hetero": 0.4},
                                       {"burst": 0.5, "swe": 0.25, "hetero": 0.25}, {"hetero": 0.6, "swe": 0.4})
"""Shares of work by phase; a kind's share is divided evenly over its agent types."""


@dataclass(frozen=True)
class ShiftParams(Params):
    """What a person may set."""

    period_s: float = 1800.0
    """How long a phase lasts."""
    phases: int = len(MIXES)
    """How many phases there are before the first comes again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.period_s < float("inf"):
            raise UserError("parameter period_s", f"is {self.period_s}", "give a positive number of seconds")
        if not 1 <= self.phases <= len(MIXES):
            raise UserError("parameter phases", f"is {self.phases}", f"choose from 1 to {len(MIXES)}")


DEFAULTS = ShiftParams(sessions=2400, rate_per_min=24.0)


def sources() -> list[Source]:
    """One tenant a workload; each agent type once. Shares here are those of work over a whole round."""
    return [Source(kind, agent, sum(m.get(kind, 0.0) for m in MIXES) / len(MIXES) / len(agents))
            for kind, agents in _KINDS.items() for agent in agents]


def work(agent: AgentType) -> float:
    """Mean work of a session in prompt tokens."""
    rng = np.random.default_rng(0)
    new, out = (float(f(rng, 20_000).mean()) for f in (agent.new_tokens, agent.output_tokens))
    return agent.mean_steps * (new + OUTPUT_WORK * out)


def arrivals(rng: np.random.Generator, sessions: int, peak_per_s: float, period_s: float, phases: int
             ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`sessions` arrival times, s, and the number in `sources()` of what arrives.

    peak_per_s: sessions of mean work a second.
    """
    made = sources()
    kinds = [s.tenant for s in made]
    weight = np.array([work(s.agent) for s in made])
    mean_work = 1.0 / float((np.array([s.share for s in made]) / weight).sum())  # of a session; shares are of work
    rates = np.array([[peak_per_s * LEVELS[k % 2] * MIXES[k].get(kind, 0.0) / kinds.count(kind) * mean_work / w
                       for kind, w in zip(kinds, weight, strict=True)] for k in range(phases)])
    times: list[NDArray[np.float64]] = []
    what: list[NDArray[np.int64]] = []
    found = phase = 0
    while found < sessions:
        rate = rates[phase % phases]
        n = int(rng.poisson(rate.sum() * period_s))
        times.append(period_s * (phase + np.sort(rng.random(n))))
        what.append(rng.choice(len(made), size=n, p=rate / rate.sum()))
        found += n
        phase += 1
    return np.concatenate(times)[:sessions], np.concatenate(what)[:sessions].astype(np.int64)


def generate(seed: int, params: ShiftParams) -> Trace:
    rng = np.random.default_rng(seed)
    at, what = arrivals(rng, params.sessions, params.rate_per_min / 60.0, params.period_s, params.phases)
    trace = agents_at("shift", seed, params, sources(), at, what, rng)
    notes = trace.meta.notes | {"period_s": params.period_s, "phases": params.phases}
    return replace(trace, meta=replace(trace.meta, notes=notes))
