"""What is remembered costs memory, not time: an hour of single prompts beside a few sessions that live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_kit import BLOCK, Clock, make_request, make_scheduler, step, vllm

from saga_rl.policies.features import AD
from saga_rl.policies.registry import make
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.engine.queueing.admission import count_active
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.runtime.routing.router import SWEEP_MOST, SWEEP_S, Router
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import Tracker

assert vllm is not None
MANY, APART_S = 20_000, 0.03


class Counting(dict):
    """A dictionary that counts how many of its keys were walked over."""

    walked = 0

    def __iter__(self) -> Any:
        for key in super().__iter__():
            self.walked += 1
            yield key


def one_shot(t: Tracker, k: int, now: float, named: bool) -> None:
    served = t.arrive(Hints(session=f"once-{k}", unnamed=not named), now, 100)
    t.schedule(served, now)
    t.finish(served, now + 0.01, 4)


@pytest.mark.parametrize("named", [True, False])
def test_the_living_and_the_old_are_not_looked_for_among_all(named: bool) -> None:
    t = Tracker(expiry_s=30.0)
    for k in range(MANY):
        one_shot(t, k, k * APART_S, named)
        if k % 100 == 0:
            t.heard.leave_silent(t.chains, k * APART_S, t.expiry_s)
    now = MANY * APART_S
    running = t.arrive(Hints(session="runs"), now, 100)
    assert len(t) == MANY + 1
    live = t.live(now)
    assert running.chain in live and len(live) <= 2 + 30 / APART_S
    assert set(live) == {c for c in t._row.values() if t.chains[c, ch.ENDED] == 0 and not t.silent(c, now)}
    t.heard.looks = 0
    assert t.forget(now, ()) == [] and t.heard.looks == 1
    late = now + 3600 - 5 * APART_S
    t.heard.looks = 0
    gone = t.forget(late, (), 1000)
    assert 0 < len(gone) <= 1000 and t.heard.looks <= 2 * len(gone) + 1002
    assert len(t) == MANY + 1 - len(gone)


def test_active_chains_are_counted_among_the_living() -> None:
    t, rng = Tracker(expiry_s=50.0), np.random.default_rng(1)
    busy: list[Any] = []
    for k in range(400):
        now = k * 1.0
        served = t.arrive(Hints(session=f"s{rng.integers(60)}", agent=int(rng.integers(2)),
                                final=bool(rng.random() < 0.1)), now, 50)
        t.schedule(served, now)
        busy.append(served)
        if len(busy) > 5:
            done = busy.pop(int(rng.integers(5)))
            t.abort(done, now) if rng.random() < 0.2 else t.finish(done, now, 3)
        if k % 7 == 0:
            t.expire(now, np.array(sorted(t._row.values())))
        if k % 11 == 0:
            t.heard.leave_silent(t.chains, now, t.expiry_s)
        everyone = np.arange(len(t.chains))
        assert count_active(t.chains, t.heard.living(), now, 50.0) == count_active(t.chains, everyone, now, 50.0)
        assert len(set(t.heard.living().tolist())) == len(t.heard.living())


def test_a_routers_sweep_looks_at_what_fell_silent() -> None:
    r = Router(make("placement", "saga"), 2, 8, 10_000, tokens_per_s=1000.0, expiry_s=30.0)
    r._counted = Counting()
    for k in range(MANY // 4):
        now = k * APART_S
        r.book(f"r{k}", Hints(session=f"once-{k}"), 10, k % 2, now)
        r.output(f"r{k}", 4, True, now + 0.01)
    r.book("runs", Hints(session="runs"), 10, 0, now)
    r._counted.walked = r.tracker.heard.looks = 0
    for k in range(40):
        r.book(f"later{k}", Hints(session=f"later-{k}"), 10, 0, now + 31 + k * SWEEP_S)
        r.output(f"later{k}", 1, True, now + 31 + k * SWEEP_S)
    assert r._counted.walked <= MANY // 4 and r.tracker.heard.looks <= 40 * 3
    alive = [c for c in r._counted if not r.tracker.silent(c, now + 31 + 39 * SWEEP_S)]
    assert len(r._counted) - len(alive) <= SWEEP_MOST + 1
    assert r.tracker.chain_of("runs") in r._counted


def test_an_engine_with_a_long_history_admits_as_a_new_one_does(tmp_path: Path) -> None:
    """The answer is the same, too: columns are those of a walk over everything."""
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, tmp_path, clock=clock, blocks=64, saga={"policy": "likely"})
    for k in range(3000):
        one_shot(s.tracker, k, clock.now, named=True)
        clock.now += 0.2
    s.add_request(make_request("runs", [1] * 3 * BLOCK, session="a", output=100))
    step(s)
    s.add_request(make_request("waits", [2] * 3 * BLOCK, session="b"))
    step(s)
    served = s.served["waits"]
    s.admission.make_row(s.requests["waits"], served, 0, s.running, s.served, s.now)
    everyone = np.arange(len(s.tracker.chains))
    assert s.admission.row[0, AD.active] == count_active(s.tracker.chains, everyone, s.now, s.tracker.expiry_s)
    assert len(s.tracker.heard.living()) <= 300 / 0.2 + 3
