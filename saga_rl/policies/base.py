"""The four decisions. A policy is a compiled score over one feature row, plus its parameters.

Every decision has the same shape: the caller (simulator, environment or vLLM adapter) fills one row of features through
`saga_rl.policies.features`, calls `policy.score(row, params, scratch)` and acts on the number:

| decision | row describes | the caller |
|---|---|---|
| eviction | one evictable chain on one worker | evicts from the *highest* score first, tail blocks first |
| placement | one worker, for one request | sends it to the *highest* score; ties: fewest chains homed, lowest worker |
| ordering | one waiting request | schedules the *lowest* score first; ties: earliest arrival, then step number |
| admission | the request at the head of a queue | lets it in if the score is > 0 |

The constraints stand outside: a running request's blocks are never evicted, a block goes only after every block that
depends on it, an idle worker always admits. A score therefore can slow a cluster down but not break it.

`score` is compiled with the explicit signature `SCORE`, so one compiled engine serves every policy, also a user's own.
It must not allocate, must not raise, and reads only its three arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numba import types
from numpy.typing import NDArray

Decision = Literal["eviction", "placement", "ordering", "admission"]
DECISIONS: tuple[Decision, ...] = ("eviction", "placement", "ordering", "admission")

_ROW = types.Array(types.float64, 1, "C")
SCORE = types.float64(_ROW, _ROW, _ROW)
"""(features, params, scratch) -> score: decorate with `@njit(SCORE, cache=True)`."""
SCORE_TYPE = types.FunctionType(SCORE)
MEMORY = 12
"""Floats that a policy with memory writes to `scratch`: 4 of the chain, then 8 of the worker (admission: 8)."""


@dataclass(frozen=True)
class Policy:
    """One policy of one decision, ready to be called from compiled code."""

    decision: Decision
    name: str
    score: Callable[[NDArray, NDArray, NDArray], float]
    params: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    scratch: int = 1
    """Floats of work space that `score` wants."""
    oracle: bool = False
    """True only for references that may read the ORACLE feature; everyone else gets NaN there."""
    oracle_gaps: bool = False
    """Eviction, an oracle in open loop: ORACLE shows how many seconds after its last use a block is used next, in the
    stead of the number of that event."""
    whole_chain: bool = False
    """Eviction: take all of a victim at once instead of as many tail blocks as are needed."""
    drop_expired: bool = False
    """Eviction: free a chain as soon as its TTL has run out, pressure or not (literal TTL)."""
    steady: bool = False
    """A promise that lets the simulator skip iterations: while no request arrives, ends or is preempted on the worker
    and no chain expires, time alone changes nothing of the *order* of victims (eviction), of the queue (ordering), or
    of a *refusal*, though blocks are allocated, as long as none is evicted (admission)."""
    steady_idle_s: float = math.inf
    """Eviction: `steady` holds only until some chain's blocks have been idle for so long."""
    steady_one_tenant: bool = False
    """`steady` as long as all requests are of one tenant."""
    memory: bool = False
    """Eviction, admission: the caller also tells it what happened (`features.remember`, `remember_admission`). `score`
    sees what it remembered in its row's last columns and leaves what it wants to remember in `scratch`, which has at
    least `MEMORY` floats."""
    informed: bool = True
    """Eviction, admission: it reads what the tables of latencies and ends say, or logarithms. False spares the caller
    making those columns: they keep what they held, see `features.eviction_row` and `features.admission_row`. Ordering:
    it reads what its tenant was served; False spares an engine counting the answers under way."""
    scaled: bool = True
    """Eviction, of an informed one: it reads logarithms, or what they are taken of: a chain's kin and pauses. False
    spares the caller making those, too."""
    fresh: bool = False
    """Ordering: scored anew before each choice from the queue, not just when a request is queued and every epoch."""
    draws: bool = False
    """Placement: reads the columns "draw" and "ring"."""
    steals: bool = False
    """Placement: an idle worker takes queued sessions from overloaded ones (`sim.engine.stealing`)."""
    oldest_first: bool = False
    """Eviction: `score` always prefers what was released earliest, so a caller may pick that without making rows."""
    doc: dict[str, Any] = field(default_factory=dict)
    """What a report says of it: parameters by name, checkpoint hash, ..."""

    def __post_init__(self) -> None:
        if self.memory and (self.scratch < MEMORY or self.drop_expired or self.steady or self.oldest_first):
            raise ValueError(f"{self.decision} policy {self.name!r}: memory wants scratch >= {MEMORY} and goes with "
                             "none of drop_expired, steady, oldest_first")


@dataclass(frozen=True)
class PolicySet:
    """One policy for each decision: what a scheduler runs with."""

    eviction: Policy
    placement: Policy
    ordering: Policy
    admission: Policy

    def names(self) -> dict[str, str]:
        return {decision: getattr(self, decision).name for decision in DECISIONS}
