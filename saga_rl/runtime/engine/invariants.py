"""What must hold between two calls of a scheduler, checked by walking everything: blocks, runs, hashes, rows, service.

Off unless the configuration (`check`) or the environment (`SAGA_RL_CHECK`) says "log" (count and log what is wrong, go
on) or "raise" (tests). A walk costs some microseconds a block, so pools beyond `SMALL` blocks are walked once a second.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from saga_rl.policies.state import chains as ch
from saga_rl.policies.state import service as sv
from saga_rl.runtime.config.settings import CHECKS
from saga_rl.runtime.engine.kv.runs import BLOCKS, CHAIN, SEQ, SHARED, STALE
from saga_rl.runtime.engine.queueing.request_queue import PolicyRequestQueue
from saga_rl.runtime.engine.view import EngineView
from saga_rl.runtime.sessions.tracker import NOBODY, W

log = logging.getLogger("vllm.saga_rl")
ENVIRONMENT = "SAGA_RL_CHECK"
SMALL = 4096
EVERY, EVERY_S = 4, 1.0


class InvariantError(AssertionError):
    """Something that must hold does not."""


class Checker:
    """Calls `broken` after each of a scheduler's calls, as often as `mode` and the size of the pool allow."""

    def __init__(self, scheduler: EngineView, mode: str) -> None:
        self.scheduler, self.mode = scheduler, mode
        self._next, self._calls = 0.0, 0
        self._small = scheduler.kv_cache_manager.block_pool.num_gpu_blocks <= SMALL

    def __call__(self, after: str) -> None:
        now = time.monotonic()
        self._calls += 1
        if self._calls % EVERY if self._small else now < self._next:
            return
        self._next = now + EVERY_S
        wrong = broken(self.scheduler)
        if not wrong:
            return
        if self.mode == "raise":
            raise InvariantError(f"after {after}: " + "; ".join(wrong[:10]))
        self.scheduler.metrics.counts["invariants broken"] += len(wrong)
        log.error("saga-rl: after %s: %d invariants do not hold: %s", after, len(wrong), "; ".join(wrong[:10]))


def checker(scheduler: EngineView, configured: str) -> Checker | None:
    """The environment says how, else `configured`; None: not at all."""
    mode = os.environ.get(ENVIRONMENT) or configured
    return Checker(scheduler, mode) if mode in CHECKS[1:] else None


def broken(s: EngineView) -> list[str]:
    """What does not hold, in words; empty if everything does. Between two calls only, from the scheduling thread."""
    return [*_blocks(s), *_runs(s), *_hashes(s), *_rows(s), *_service(s)]


def _linked(queue: Any) -> list[Any]:
    """The blocks of vLLM's linked list, walked forwards."""
    out, block = [], queue.fake_free_list_head.next_free_block
    while block is not queue.fake_free_list_tail and block is not None:
        out.append(block)
        block = block.next_free_block
    return out


def _blocks(s: EngineView) -> Iterator[str]:
    """Every block is empty, or in one run, or referenced; lists are as long as they say."""
    pool, queue = s.kv_cache_manager.block_pool, s.block_queue
    empty = _linked(queue.empty)
    place: Counter[int] = Counter(b.block_id for b in empty)
    if len(empty) != queue.empty.num_free_blocks:
        yield f"{len(empty)} empty blocks, counted {queue.empty.num_free_blocks}"
    idle = 0
    for run in queue.runs.all():
        blocks = list(run)
        idle += len(blocks)
        place.update(b.block_id for b in blocks)
        if len(blocks) != run.num_free_blocks or queue.runs.table[run.slot, BLOCKS] != len(blocks):
            yield f"run {run.seq} has {len(blocks)} blocks, counted {run.num_free_blocks}"
        if any(queue.runs.of[b.block_id] is not run for b in blocks):
            yield f"run {run.seq}: a block belongs to another run"
    if len(empty) + idle != queue._free:
        yield f"{len(empty)} empty and {idle} evictable blocks, counted {queue._free}"
    users: Counter[int] = Counter(b.block_id for r in s.requests.values()
                                  for table in s.kv_cache_manager.get_blocks(r.request_id).blocks for b in table
                                  if getattr(b, "pool", pool) is pool)
    late = bool(getattr(s, "deferred_frees", None)) or s.connector is not None  # held by more than tables
    for block in pool.blocks:
        b, held = block.block_id, block.ref_cnt > 0
        if block.is_null:
            continue
        if place[b] + held != 1:
            yield f"block {b} stands in {place[b]} lists and has {block.ref_cnt} references"
        if held and not late and block.ref_cnt != users[b]:
            yield f"block {b} has {block.ref_cnt} references and stands in {users[b]} tables"
        if not held and queue.runs.of[b] is None and block.block_hash is not None and not s.lazy:  # a copy is below
            yield f"empty block {b} has a hash"


def _runs(s: EngineView) -> Iterator[str]:
    """Tables, sums and what is built on what agree with the runs."""
    runs = s.block_queue.runs
    held, tenants = np.zeros((len(runs.groups.tokens), len(runs.owned))), Counter[int]()
    used = np.flatnonzero(runs.table[:, BLOCKS])
    slots = set(used.tolist())
    if not np.array_equal(runs.slots(), used[np.argsort(runs.table[used, SEQ])]):
        yield "the order of runs is that of an earlier moment"
    for slot, run in enumerate(runs.at):
        if (run is not None) != (slot in slots) or (slot in slots) == (slot in runs._free):
            yield f"slot {slot} is used and free, or neither"
        elif run is not None:
            row = runs.table[slot]
            held[run.group, run.chain] += run.num_free_blocks * runs.groups.weights[run.group]
            tenants[run.tenant] += run.num_free_blocks
            if (int(row[CHAIN]), bool(row[SHARED]), int(row[SEQ]), bool(row[STALE]), run.slot) != (
                    run.chain, run.shared, run.seq, run.stale, slot):
                yield f"the row of run {run.seq} is another's"
            if run.chain != NOBODY and s.tracker._key[run.chain] is None:
                yield f"run {run.seq} is of a chain that is forgotten"
    if any(runs.groups.of(block) != run.group for run in runs.all() for block in run):
        yield "a run holds blocks of another group"
    if not np.array_equal(held.max(axis=0, initial=0.0), runs.owned):
        yield "evictable blocks by chain are counted wrongly"
    if tenants != +runs.idle:
        yield "evictable blocks by tenant are counted wrongly"
    if {(b, a) for a, built in runs.on.items() for b in built} != set(runs.base.items()):
        yield "what is built on what is not the same both ways round"
    if any(runs.of[b] is None for b in runs.base) or any(not built for built in runs.on.values()):
        yield "a block that is not evictable counts as built on another"


def _hashes(s: EngineView) -> Iterator[str]:
    """A block has a hash if and only if the map finds it under that."""
    pool = s.kv_cache_manager.block_pool
    found = {(b.block_id, key) for key, blocks in pool.cached_block_hash_to_block._cache.items()
             for b in (blocks.values() if isinstance(blocks, dict) else (blocks,))}
    have = {(b.block_id, b.block_hash) for b in pool.blocks if b.block_hash is not None}
    if wrong := found ^ have:
        yield f"{len(wrong)} blocks' hashes are not those of the map, the first of block {min(b for b, _ in wrong)}"


def _rows(s: EngineView) -> Iterator[str]:
    """Rows of the tracker are those of the requests that live, and none leaks."""
    t, x = s.tracker, s.tracker.chains
    chains = [r.chain for r in s.served.values()]
    running = {s.served[r.request_id].chain for r in s.running if r.request_id in s.served}
    if len(set(chains)) != len(chains):
        yield "two requests share a row"
    if gone := [r for r in s.served if r not in s.requests]:
        yield f"request {gone[0]} has gone, what is known of it has not"
    if lost := [r.request_id for r in (*s.running, *s.waiting) if r.request_id not in s.served]:
        yield f"nothing is known of request {lost[0]}"
    # A streaming input keeps its blocks while it waits for its next part, so its row runs on.
    parts = {s.served[name].chain for name, r in s.requests.items()
             if getattr(r, "resumable", False) and name in s.served}
    run = set(np.flatnonzero(x[:, ch.RUNNING]).tolist())
    if not running <= run <= running | parts:
        yield "rows that run are not those of the running requests"
    if set(chains) - run != set(np.flatnonzero(x[:, ch.WAITING]).tolist()):
        yield "rows that wait are not those of the waiting requests"
    known = {c for c, key in enumerate(t._key) if key is not None}
    if known != set(t._row.values()) or len(t._row) != len(known) or len(t._free) + len(known) + 1 != len(x):
        yield "a row has leaked"
    if sorted(c for session in t._sessions.values() for c in session.chains) != sorted(known):
        yield "sessions and rows do not agree"
    if leaked := set(s.lost_tokens) - set(s.served):
        yield f"lost tokens of {len(leaked)} requests that are gone"
    if leaked := s.loading - set(s.served):
        yield f"{len(leaked)} requests that are gone count as loading"


def _service(s: EngineView) -> Iterator[str]:
    """Who waits for service, and the order of our queue."""
    waits = Counter(r.tenant for r in s.served.values() if r.number in s.service._waiting)
    counters = s.service.counters[W, :-1]
    if Counter({t: int(n) for t, n in enumerate(counters[:, sv.WAITING]) if n}) != waits:
        yield "tenants that wait are counted wrongly"
    if len(s.service._waiting) != waits.total():
        yield "a request that is gone waits for service"
    if not (np.isfinite(counters).all() and (counters >= 0).all()):
        yield "a service counter is no number of tokens"
    if isinstance(s.waiting, PolicyRequestQueue):
        keys = [e[:3] for e in s.waiting._sorted]
        if keys != sorted(keys):
            yield "the waiting queue is not in order"
