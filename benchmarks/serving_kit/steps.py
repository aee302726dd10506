"""Time of one step (`schedule` and `update_from_output`, what the model does not do), stock against ours in turns."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.runtime.sessions.hints import Hints
from serving_kit.engine import BLOCK, STOCK, answer, drain, make_request, make_scheduler, step

IDLE_BLOCKS, PROMPT_BLOCKS = 8, 4
LONG = 4000
WARM_STEPS = 10
"""Steps ahead of those that count."""
TENANTS = 4
"""Of a scene with floors: requests are theirs in turn."""


@dataclass(frozen=True)
class Scene:
    """`running` requests beside `idle` sessions. spare: empty blocks when the clock starts; turnover: requests that end
    in each step, and as many idle sessions that come back; waiting: requests that find no place; remembered: chains of
    single prompts that hold nothing any more; floors: four tenants, each with a KV floor."""

    name: str
    spare: int
    turnover: int = 0
    waiting: int = 0
    remembered: int = 0
    floors: bool = False

    def tenant(self, k: int) -> str | None:
        return f"t{k % TENANTS}" if self.floors else None


SCENES = (
    Scene("steady decode", 50_000),
    Scene("decode, 500 wait for a place", 50_000, waiting=500),
    Scene("decode, every new block evicts", 0),
    Scene("2 end and 2 come in each step", 50_000, turnover=2),
    Scene("the same, 500 wait for a place", 50_000, turnover=2, waiting=500),
    Scene("the same, every new block evicts", 0, turnover=2),
    Scene("the same, 100,000 chains remembered", 0, turnover=2, remembered=100_000),
    Scene("the same, four tenants with floors", 0, turnover=2, floors=True),
)


class Load:
    """One scheduler in a scene."""

    def __init__(self, policy: str, policies: Any, scene: Scene, model: Path, idle: int, running: int) -> None:
        self.scene, self.idle, self.sent = scene, idle, 0
        used = idle * IDLE_BLOCKS + running * (PROMPT_BLOCKS + 2)
        self.scheduler = s = make_scheduler(STOCK if policy == STOCK else "lru", model, used + scene.spare + 1, running,
                                            scene.floors)
        self.contexts = [[1000 + i] * (IDLE_BLOCKS * BLOCK) for i in range(idle)]
        for i, context in enumerate(self.contexts):
            s.add_request(make_request(f"idle{i}", context, 1, f"s{i}", scene.tenant(i)))
            if i % 128 == 127:
                drain(s)
        drain(s)
        for i in range(running):  # lengths differ, so that in each step some need a block and some do not
            output = LONG if not scene.turnover else WARM_STEPS + 4 + i // scene.turnover
            tokens = [100_000 + i] * (PROMPT_BLOCKS * BLOCK - i % BLOCK)
            s.add_request(make_request(f"run{i}", tokens, output, f"r{i}", scene.tenant(i)))
        while s.waiting:
            step(s)
        self.length = running // max(scene.turnover, 1)
        s.max_num_running_reqs += 1
        while not scene.spare and (empty := self._empty(policy)) > BLOCK:  # what the estimate of the pool left over
            tokens = [300_000 + empty] * (min(empty, 200) * BLOCK)
            s.add_request(make_request(f"fill{empty}", tokens, 1, f"fill{empty}", scene.tenant(empty)))
            while f"fill{empty}" in s.requests:
                step(s)
        s.max_num_running_reqs -= 1
        if policy != STOCK:
            s.swap(policies, policy)  # every policy begins in the same state
            if (drift := s.kv_cache_manager.block_pool.free_block_queue.victims.drift) is not None:
                drift.detector.patience = math.inf  # sessions come back here as they never do: it would give way
        for i in range(scene.waiting):
            tokens = [200_000 + i] * (PROMPT_BLOCKS * BLOCK)
            s.add_request(make_request(f"wait{i}", tokens, LONG, f"w{i}", scene.tenant(i)))
        if policy != STOCK:
            for i in range(scene.remembered):
                self._remember(i)

    def _remember(self, i: int) -> None:
        """A prompt of long ago that was no session's: what is left of it is that it was."""
        s = self.scheduler
        served = s.tracker.arrive(Hints(session=f"once{i}", unnamed=True), s.now, BLOCK)
        s.tracker.schedule(served, s.now)
        s.tracker.finish(served, s.now, 1)

    def _empty(self, policy: str) -> int:
        """Blocks that hold nothing."""
        free = self.scheduler.kv_cache_manager.block_pool.free_block_queue
        if policy != STOCK:
            return free.n_empty
        return sum(b.block_hash is None for b in free.get_all_free_blocks())

    def step(self) -> float:
        """Seconds."""
        s, arrivals = self.scheduler, []
        for _ in range(self.scene.turnover):
            k = self.sent % self.idle
            self.contexts[k] = self.contexts[k] + [self.sent % 97] * BLOCK
            arrivals.append(make_request(f"back{self.sent}", self.contexts[k], self.length, f"s{k}",
                                         self.scene.tenant(k)))
            self.sent += 1
        started = time.thread_time()
        for request in arrivals:
            s.add_request(request)
        out = s.schedule()
        between = time.thread_time()
        answered = answer(s, out)
        again = time.thread_time()
        s.update_from_output(out, answered)
        return time.thread_time() - again + between - started


def measure(scene: Scene, policies: dict[str, Any], model: Path, idle: int, running: int, steps: int,
            rounds: int) -> dict[str, NDArray[np.float64]]:
    """(rounds * steps,) seconds a step, by policy and for stock. Schedulers take turns step by step, and who begins
    changes; a round begins with fresh schedulers. The first steps of a round are not counted."""
    names = [STOCK, *policies]
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        loads = {name: Load(name, policies.get(name), scene, model, idle, running) for name in names}
        gc.collect()
        gc.freeze()
        gc.disable()
        for k in range(steps + WARM_STEPS):
            for i in range(len(names)):
                name = names[(k + i) % len(names)]
                seconds = loads[name].step()
                if k >= WARM_STEPS:
                    times[name].append(seconds)
        gc.enable()
        gc.unfreeze()
        for load in loads.values():
            load.scheduler.shutdown()
    return {name: np.array(t) for name, t in times.items()}


def compare(times: dict[str, NDArray[np.float64]], seed: int = 0) -> dict[str, dict[str, float]]:
    """By policy: median ms, P95, P99, the median over steps of ours minus stock's (us) with a 95 % bootstrap interval,
    and the ratio of medians. `met`: within 2 % of stock or 50 us, whichever is larger, in the median and in P99."""
    rng, stock, out = np.random.default_rng(seed), times[STOCK], {}
    base, tail = float(np.median(stock)), float(np.quantile(stock, 0.99))
    for name, t in times.items():
        more = t - stock
        draws = np.median(more[rng.integers(0, len(more), (1000, len(more)))], axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        median, p99 = float(np.median(more)), float(np.quantile(t, 0.99))
        out[name] = {"ms": 1e3 * float(np.median(t)), "p95_ms": 1e3 * float(np.quantile(t, 0.95)),
                     "p99_ms": 1e3 * p99, "p99_met": float(p99 - tail <= max(0.02 * tail, 50e-6)),
                     "more_us": 1e6 * median, "low_us": 1e6 * float(low), "high_us": 1e6 * float(high),
                     "ratio": float(np.median(t)) / base, "met": float(median <= max(0.02 * base, 50e-6))}
    return out
