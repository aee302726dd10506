"""Compiles or loads everything compiled while the engine starts, so that no request pays for it."""

from __future__ import annotations

import numpy as np

from saga_rl.policies.features import G_BLOCK, G_TIERED, ORDERING, RELEASE, make_g
from saga_rl.policies.state import chains as ch
from saga_rl.policies.state.agent_fair_share import afs
from saga_rl.runtime.engine.kv.block_queue import PolicyBlockQueue
from saga_rl.runtime.engine.kv.victims import Victims
from saga_rl.runtime.engine.queueing.admission import Admission
from saga_rl.runtime.engine.queueing.request_queue import fill_ordering
from saga_rl.runtime.engine.queueing.tenants import Service
from saga_rl.runtime.sessions.tracker import NOBODY, Tracker, W


def warm_up(tracker: Tracker, queue: PolicyBlockQueue, admission: Admission, service: Service) -> None:
    """Call each compiled function once, on the types that requests will bring; changes no state that counts."""
    tracker.warm_up()
    service.warm_up()
    fill_ordering(tracker.chains, tracker.tables, W, 0.0, np.zeros((1, 5)), np.zeros(1), queue.runs.owned, 1.0,
                  service.counters, np.zeros((1, len(ORDERING))))
    afs(tracker.chains, tracker.tables, W, np.zeros(1, np.int64), 1, 0.0, 0.1, np.zeros(1))
    warm_policies(tracker, queue, queue.victims, admission)


def warm_policies(tracker: Tracker, queue: PolicyBlockQueue, victims: Victims, admission: Admission) -> None:
    """The same for what depends on the policies."""
    before, slots = tracker.chains[NOBODY].copy(), np.zeros(1, np.int64)
    victims.refresh(queue.runs, slots, 0, 0.0)
    victims.scores(queue.runs, slots, 0.0)
    victims.notify(NOBODY, 0.0, 0.0, 0.0, RELEASE, 0.0, 0.0)
    admission.fill(NOBODY, 1, 0, 0, np.zeros((1, 4)), slots, 0.0, 0.0)
    admission.let_in(0, 1)
    tracker.chains[NOBODY] = before
    victims.g[:] = make_g(1, int(victims.g[W, G_BLOCK]), victims.pool_blocks, victims.policy, admission.policy,
                          bool(victims.g[W, G_TIERED]))
    assert tracker.chains[NOBODY, ch.TENANT] == -1
