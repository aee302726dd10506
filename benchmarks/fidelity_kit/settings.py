"""What is run: the trace, the engines' limits, and how much KV they have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from saga_rl.aeg.generators import generate
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.trace import Trace
from saga_rl.env.episodes import demand_tokens
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile

ENGINES = 2
NOMINAL = CostProfile("nominal", 2.5e-3, 6e-5, 1e-7, 1.5e-4, 1e-8, provenance={"kind": "assumed"})
"""Round constants of a 2-core machine. Only the demand for KV and the sessions' engines are taken from it, because both
must be known before anything can be measured."""


@dataclass(frozen=True)
class Setup:
    """One experiment. Lengths are scaled so that contexts fit the tiny model, times so that a run takes a minute."""

    workload: str = "swe-bench"
    seed: int = 0
    sessions: int = 96
    fit_seed: int = 1
    """Seed of the other trace, which the profile is fitted on."""
    fit_s: float = 25.0
    """Seconds of the other trace that each pair of engines serves."""
    arrivals_s: float = 15.0
    """Seconds in which the sessions arrive, on average."""
    length_factor: float = 1 / 96
    time_factor: float = 0.2
    block_tokens: int = 32
    max_num_seqs: int = 16
    max_batched_tokens: int = 256
    max_model_len: int = 1408

    def trace(self, seed: int) -> Trace:
        """The scaled trace; arrivals are a Poisson stream that brings all sessions in about `arrivals_s`."""
        rate = 60.0 * self.sessions * self.time_factor / self.arrivals_s
        raw = generate(self.workload, seed, sessions=self.sessions, rate_per_min=rate)
        return scale_lengths(raw, self.length_factor, self.max_model_len - 1, self.time_factor)

    def config(self, profile: CostProfile, kv_tokens: int) -> SimConfig:
        """The simulated twin of the two engines."""
        return SimConfig(workers=ENGINES, kv_tokens=kv_tokens, block_tokens=self.block_tokens,
                         max_num_seqs=self.max_num_seqs, max_batched_tokens=self.max_batched_tokens, profile=profile)

    def demand(self, trace: Trace, profile: CostProfile = NOMINAL) -> int:
        """KV tokens that the trace would hold if memory were no limit, both engines together (`demand_tokens`)."""
        return demand_tokens(trace, self.config(profile, 1 << 24))

    def pool_tokens(self, demand: int, level: float) -> int:
        """KV tokens of one engine at which the demand is `level` times what both hold: whole blocks."""
        return round(demand / ENGINES / level / self.block_tokens) * self.block_tokens


def shorter(setup: Setup, sessions: int, fit_s: float) -> Setup:
    """The same density of sessions in less time, to try things out."""
    return replace(setup, sessions=sessions, fit_s=fit_s, arrivals_s=setup.arrivals_s * sessions / setup.sessions)
