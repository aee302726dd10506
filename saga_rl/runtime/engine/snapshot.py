"""One engine in numbers, between two steps: what metrics endpoints and an operator's status show."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_rl.policies.features import G_TIERED, tier_found
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import service as sv
from saga_rl.policies.state.agent_fair_share import afs
from saga_rl.runtime.engine.kv.runs import BLOCKS, CHAIN
from saga_rl.runtime.engine.queueing.request_queue import EPOCH_S
from saga_rl.runtime.engine.view import EngineView
from saga_rl.runtime.sessions.tracker import W


def snapshot(s: EngineView) -> dict[str, Any]:
    """Counters and mean times (`Metrics.snapshot`), and

    - `policy`, `policies/DECISION`: what is in force; `requests/running|waiting`
    - `kv/running|live|waiting|ended|empty`, `kv/blocks`: blocks, by who holds them: a running request; nobody now, but
      a chain that may return, whose request waits, or that ended; nothing in them
    - `tier found`, where there is memory below the GPU: see `features.tier_found`
    - `tenant/NAME/afs|service|kv`: Agent Fair Share now, tokens of service, blocks (running and evictable)
    - `sessions/...`, `tct/...`: see `completion`

    Call it from the thread that schedules.
    """
    running, waiting = s.get_request_counts()  # with those that wait for KV to come, which are in no queue of ours
    out = {**s.metrics.snapshot(), "policy": s.shown,
           **{f"policies/{decision}": name for decision, name in s.policies.names().items()},
           "requests/running": running, "requests/waiting": waiting}
    g = s.admission.victims.g
    if g[W, G_TIERED] > 0:
        out["tier found"] = round(float(tier_found(g, W, s.now)), 4)
    return {**out, **_blocks(s), **_tenants(s), **s.tracker.completion.as_dict()}


def _blocks(s: EngineView) -> dict[str, int]:
    queue, rows = s.block_queue, s.tracker.chains
    table = queue.runs.table[queue.runs.table[:, BLOCKS] > 0]
    of, blocks = rows[table[:, CHAIN].astype(np.int64)], table[:, BLOCKS]
    ended = of[:, ch.ENDED] > 0
    waiting = (of[:, ch.WAITING] == 1) & ~ended
    total = s.kv_cache_manager.block_pool.num_gpu_blocks - 1
    return {"kv/blocks": total, "kv/running": total - queue.n_empty - queue.n_evictable,
            "kv/live": int(blocks[~ended & ~waiting].sum()), "kv/waiting": int(blocks[waiting].sum()),
            "kv/ended": int(blocks[ended].sum()), "kv/empty": queue.n_empty}


def _tenants(s: EngineView) -> dict[str, float]:
    t, counters = s.tracker, s.service.counters[W, :-1, sv.COUNTER]
    shares = np.zeros(max(len(t.tenants.codes), 1))
    live = t.live(s.now)
    afs(t.chains, t.tables, W, live, len(live), s.now, EPOCH_S, shares)
    idle, pinned = s.block_queue.runs.idle, s.pinned()
    out: dict[str, float] = {}
    for name, code in t.tenants.codes.items():
        out[f"tenant/{name}/afs"] = round(float(shares[code]), 6)
        out[f"tenant/{name}/service"] = float(counters[code]) if code < len(counters) else 0.0
        out[f"tenant/{name}/kv"] = idle[code] + pinned[code]
    return out
