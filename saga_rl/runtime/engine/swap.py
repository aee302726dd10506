"""Other policies in a scheduler that is serving: every block, request, row, table and counter stays."""

from __future__ import annotations

from vllm.v1.core.sched.request_queue import RequestQueue

from saga_rl.errors import UserError
from saga_rl.policies.base import DECISIONS, PolicySet
from saga_rl.policies.features import G_FOUND_S, G_LOST, G_TIERED
from saga_rl.policies.learned.guard import Guard
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config.settings import require_free_order
from saga_rl.runtime.engine.kv.victims import Victims
from saga_rl.runtime.engine.queueing.admission import Admission
from saga_rl.runtime.engine.queueing.request_queue import PolicyRequestQueue
from saga_rl.runtime.engine.view import EngineView
from saga_rl.runtime.engine.warm import warm_policies
from saga_rl.runtime.sessions.tracker import W


def swap(s: EngineView, policies: PolicySet, shown: str) -> None:
    """Put `policies` in the place of those of `s`, between two steps. They are made and compiled first; if that raises,
    nothing has changed. What a policy with memory remembers begins anew, as do drift and the columns it reads; guards'
    counters and what is known of a tier go on. `UserError` for policies that cannot serve here."""
    for decision in DECISIONS:
        if getattr(policies, decision).oracle:
            raise UserError(f"{decision} policy {getattr(policies, decision).name!r}", "needs to know the future",
                            "choose one that can serve")
    require_free_order(policies, s.rules, s.policy.value)
    queue, old = s.block_queue, s.policies
    victims = Victims(s.tracker, policies.eviction, s.block_size, queue.victims.pool_blocks, s.saga_config.budget_s,
                      s.queue_positions, policies.admission, bool(queue.victims.g[W, G_TIERED]))
    admission = Admission(s.tracker, policies.admission, queue, s.block_size, s.admission.pool_blocks,
                          s.saga_config.budget_s)
    admission.victims = victims
    warm_policies(s.tracker, queue, victims, admission)
    victims.g[W, G_LOST:G_FOUND_S + 1] = queue.victims.g[W, G_LOST:G_FOUND_S + 1]
    s.policies = policies
    try:
        waiting = _waiting(s)
    except BaseException:
        s.policies = old
        raise
    _carry(queue.victims.guard, victims.guard)
    _carry(s.admission.guard, admission.guard)
    s.tracker.chains[:, ch.MINE:] = 0.0
    queue.use(victims)
    s.tiers = s.tie_tiers(policies)
    s.admission, s.waiting, s.shown = admission, waiting, shown
    s.metrics.counts["policy swaps"] += 1


def _waiting(s: EngineView) -> RequestQueue:
    """The queue that the policies now in force want, with all that waits in it."""
    old, fresh = s.waiting, s.empty_queue()
    if isinstance(old, PolicyRequestQueue) and isinstance(fresh, PolicyRequestQueue):
        _carry(old.guard, fresh.guard)
        fresh.shares, fresh.urgent = old.shares, old.urgent
    elif fresh is old or type(fresh) is type(old):
        return old
    for request in sorted(old, key=lambda r: (r.num_preemptions == 0, s.arrival(r))):
        fresh.add_request(request)
    return fresh


def _carry(old: Guard, new: Guard) -> None:
    new.fallbacks.update(old.fallbacks)
    new.decisions += old.decisions
