"""Who makes room for whom among running requests, where a policy or a rule says so instead of vLLM's last-in."""

from __future__ import annotations

import time

import numpy as np
from vllm.v1.request import RequestStatus

from saga_rl.runtime.engine.queueing.request_queue import PolicyRequestQueue
from saga_rl.runtime.engine.view import EngineView


def order_running(s: EngineView, queue: PolicyRequestQueue) -> None:
    """If blocks may run out in this step: sort the running requests as the ordering policy would queue them, so that
    the one it puts last is the one that vLLM preempts (the last of its list). Ties: as they were."""
    running = s.running
    groups = s.block_queue.groups.tokens
    most = sum(len(running) + s.max_num_scheduled_tokens // n for n in groups.tolist())  # blocks that one step can take
    if len(running) < 2 or s.block_queue.num_free_blocks >= most:
        return
    known = [r for r in running if r.request_id in s.served]
    order = np.argsort(queue.guard.scores(queue.rows(known, s.now), len(known)), kind="stable").tolist()
    strangers = [r for r in running if r.request_id not in s.served]
    running[:] = strangers + [known[i] for i in order]


def yield_to_late(s: EngineView, waiting: PolicyRequestQueue, now: float) -> None:
    """SAGA section 7: a request that has waited for too long makes one of a tenant with a lower share yield. Both as
    the simulator chooses them; the preemption is vLLM's own."""
    patience = s.rules.afs_preempt_s
    if now - s.yielded_s < patience:
        return  # the last one has not had its turn yet
    late = [r for r in waiting if r.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            and now - s.served[r.request_id].queued_s > patience and waiting.may_be_served(r)]
    running = [r for r in s.running if r.status == RequestStatus.RUNNING and r.request_id in s.served]
    if not late or not running:
        return
    urgent = max(late, key=waiting.share)
    victim = min(reversed(running), key=waiting.share)  # of equals the one scheduled last
    if waiting.share(victim) >= waiting.share(urgent):
        return
    s.running.remove(victim)
    s.served[victim.request_id].yields += 1
    s.metrics.counts["afs preemptions"] += 1
    s._preempt_request(victim, time.monotonic())
    s.prev_step_scheduled_req_ids.discard(victim.request_id)  # it may be scheduled again in this very step
    waiting.urgent, s.yielded_s = urgent, now
