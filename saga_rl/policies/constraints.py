"""What no policy can override: fairness between tenants, enforced outside every score, in simulator and vLLM alike.

- **Service gap** (`policies.state.service`): of the waiting requests, in the policy's order, the first one is scheduled
  whose tenant has had at most `service_gap_tokens` more service than the tenant that had least among those that wait.
- **KV floors**: eviction for one tenant's request leaves every other tenant's cached blocks alone that lie within its
  floor; a request that would need them waits instead. Only the sole request of an otherwise idle engine may take them,
  since nothing else could ever make room; that is counted (`floor_breaks`).
- **AFS with the 500 ms rule** (SAGA section 7): at each 100 ms epoch, if a request has waited for longer than
  `afs_preempt_s`, the running request of the tenant with the lowest Agent Fair Share is preempted, provided that this
  share is lower than the waiting tenant's; its KV stays cached, and the request that waited is chosen next. At most one
  every `afs_preempt_s` on an engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from saga_rl.errors import UserError, unknown_name

MOST_FLOORS = 0.9
"""Floors may claim this share of a pool in all: the rest keeps requests going."""


@dataclass(frozen=True)
class Constraints:
    """Off by default. kv_floors: share of each engine's KV pool by tenant name, "*" = every tenant not named."""

    service_gap_tokens: float = math.inf
    kv_floors: Mapping[str, float] = field(default_factory=dict)
    afs_preempt_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.service_gap_tokens >= 0:
            raise UserError("service gap", f"is {self.service_gap_tokens:g}", "give tokens of service, 0 or more")
        if not self.afs_preempt_s > 0:
            raise UserError("AFS preemption", f"after {self.afs_preempt_s:g} s", "give seconds above 0, SAGA has 0.5")
        for name, share in self.kv_floors.items():
            if not 0 <= share <= MOST_FLOORS:
                raise UserError(f"KV floor of tenant {name!r}", f"is {share:g}",
                                f"give a share of the pool between 0 and {MOST_FLOORS:g}")

    @property
    def active(self) -> bool:
        return math.isfinite(self.service_gap_tokens) or math.isfinite(self.afs_preempt_s) or any(
            self.kv_floors.values())

    def floors(self, tenants: Sequence[str], pool_blocks: int) -> NDArray[np.float64]:
        """(tenants,) blocks that each keeps. `UserError` for an unknown tenant, or floors that claim too much."""
        for name in self.kv_floors:
            if name != "*" and name not in tenants:
                raise unknown_name("tenant", name, tenants)
        shares = [self.kv_floors.get(t, self.kv_floors.get("*", 0.0)) for t in tenants]
        if sum(shares) > MOST_FLOORS + 1e-9:
            raise UserError("KV floors", f"claim {sum(shares):.2f} of the pool for {len(shares)} tenants",
                            f"claim at most {MOST_FLOORS:g} in all: what is left keeps requests going")
        return np.floor(np.array(shares, np.float64) * pool_blocks)


def read_constraints(service_gap: float | None, kv_floor: Sequence[str] | None,
                     afs_preempt: float | None) -> Constraints:
    """The constraints that command line options name. kv_floor: items `[TENANT=]SHARE`. Raises `UserError`."""
    floors: dict[str, float] = {}
    for item in kv_floor or ():
        name, eq, share = item.rpartition("=")
        try:
            floors[name if eq else "*"] = float(share)
        except ValueError:
            raise UserError("--kv-floor", f"{item!r} holds no number", "write SHARE or TENANT=SHARE, as in heavy-1=0.1"
                            ) from None
    return Constraints(math.inf if service_gap is None else service_gap, floors,
                       math.inf if afs_preempt is None else afs_preempt)
