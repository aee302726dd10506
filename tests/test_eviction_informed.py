"""What the sources of the eviction baselines that know tools, ends or lengths claim, on cases to be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from eviction_pool import EvictionPool
from policies_rows import row, score

from saga_rl.aeg.generators import generate
from saga_rl.errors import UserError
from saga_rl.policies.baselines.eviction import continuum
from saga_rl.policies.registry import make
from saga_rl.policies.state import tables as tb
from saga_rl.sim.config import SimConfig
from saga_rl.sim.openloop import script as sc
from saga_rl.sim.openloop.record import record_reference
from saga_rl.sim.openloop.replay import make_cursor
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.reference import END

FAST, SLOW, LAST = 0, 1, 2
"""Tools: returns after 0.1 s, after 60 s; one that chains often end with."""


def learned_pool(spec: str, blocks: int = 30, chains: int = 6, **more) -> EvictionPool:
    """A pool whose worker has seen 40 calls of each tool, and 40 chains end after `LAST` of the 80 that called it."""
    pool = EvictionPool(spec, blocks, chains, **more)
    for _ in range(40):
        tb.observe_return(pool.tables, 0, 0, FAST, 0.1, 10.0)
        tb.observe_return(pool.tables, 0, 0, SLOW, 60.0, 10.0)
        tb.observe_return(pool.tables, 0, 0, LAST, 0.1, 10.0)
    for _ in range(40):
        tb.observe_end(pool.tables, 0, LAST, 0, 20, False)
    return pool


def order(name: str, **candidates: dict) -> list[str]:
    """Hand-made candidates in the order in which they would go."""
    policy = make("eviction", name)
    return sorted(candidates, key=lambda c: -score(policy, **candidates[c]))


# ---------------------------------------------------------------- tail-optimised LRU
def test_tail_lru_takes_surplus_first_and_then_by_age():
    """A budget of 1,000 tokens, answers of 100. `short`: 850 + 100 fit it uncached, all 850 are surplus. Who has 5,000
    needs 5,000 + 100 - 1,000 = 4,100 cached: 900 surplus if whole, none once 4,100 are left."""
    long = {"context": 5000, "obs_tokens": 100}
    assert order(
        "tail-lru:xi=1000", old={"idle_s": 99, "tokens": 4100} | long, cut={"idle_s": 5, "tokens": 3000} | long,
        whole={"idle_s": 1, "tokens": 5000} | long,
        short={"idle_s": 2, "tokens": 850, "context": 850, "obs_tokens": 100},
    ) == ["short", "whole", "old", "cut"]


def test_tail_lru_without_a_budget_is_lru():
    x = {"context": 5000, "tokens": 5000}
    assert order("tail-lru:xi=0", a={"idle_s": 1} | x, b={"idle_s": 3} | x, c={"idle_s": 2} | x) == ["b", "c", "a"]


def test_tail_lru_keeps_long_conversations_where_lru_gives_them_up():
    """Chain 0 (20 blocks of 100 tokens) is the oldest. Budget 700 tokens, answers expected at 500: everyone may lose 2
    blocks, which is all that the others have."""
    gone = {}
    for spec in ("lru", "tail-lru:xi=700"):
        pool = EvictionPool(spec, 30, 8, block_tokens=100)
        pool.tables.obs[:] = 500.0
        pool.use(0, 20)
        for c in range(1, 6):
            pool.use(c, 2)
        pool.tables.obs[:] = 500.0
        gone[spec] = pool.use(6, 6)
    assert gone["lru"] == [(0, 6)]
    assert gone["tail-lru:xi=700"] == [(1, 2), (2, 2), (3, 2)]


# ---------------------------------------------------------------- KVFlow
def test_kvflow_takes_the_farthest_step_first():
    """Steps to execution: 1 + residual / step. 40 s at 5 s a step is 9 steps, 30 s at 1 s a step 31."""
    assert order(
        "kvflow:ends=0", far={"residual_s": 30, "step_s": 1}, middle={"residual_s": 40, "step_s": 5},
        next={"residual_s": 0.1, "step_s": 5}, ended={"ended": 1}, waits={"waiting": 1, "step_s": 5},
    ) == ["ended", "far", "middle", "next", "waits"]
    assert score(make("eviction", "kvflow:ends=0"), residual_s=40, step_s=5) == pytest.approx(9)


def test_kvflow_weighs_ends_it_is_not_told_of():
    x = {"sure": {"residual_s": 40, "step_s": 5}, "doubtful": {"residual_s": 0, "step_s": 5, "p_end": 0.5}}
    assert order("kvflow:ends=0", **x) == ["sure", "doubtful"]
    assert order("kvflow:ends=1,far=100", **x) == ["doubtful", "sure"]  # .5 x 1 + .5 x 100 steps


def test_kvflow_by_tool_from_the_tables():
    pool = learned_pool("kvflow:ends=0")
    pool.use(0, 2, tool=FAST)
    pool.use(1, 2, tool=SLOW)
    pool.use(2, 2, tool=FAST)
    assert pool.victim_order()[0] == 1


# ---------------------------------------------------------------- Continuum
def pays(delay_s: float, blocks: float = 1e6, spec: str = "continuum", **values: float) -> bool:
    """Whether the chain is within its TTL: kept behind everything that is not."""
    x = row("eviction", pool_blocks=blocks, mine_0=0, here_0=delay_s, here_2=16, **values)
    policy = make("eviction", spec)
    return policy.score(x, policy.params, np.zeros(policy.scratch)) < 0


def test_continuum_keeps_while_it_pays():
    """10,000 tokens at 0.1 s per 1,000 cost 1 s to compute again; price 1 for each second held, whatever the size. With
    a chance p of return within 10 s: p x 1 s against p x 0.2 s + (1 - p) x 10 s, so kept from p = 10 / 10.8 on."""
    spec = "continuum:linear=0.1,square=0,by_size=0"
    x = {"tokens": 10_000, "residual_s": 0.2}
    assert not pays(0, spec=spec, p_return_10s=0.92, **x)
    assert pays(0, spec=spec, p_return_10s=0.93, **x)


def test_continuum_holds_longer_the_longer_the_queue():
    """The queue that a chain without its KV meets is part of what keeping saves: with 6 s in line p = .62 is enough."""
    spec = "continuum:linear=0.1,square=0,by_size=0"
    x = {"tokens": 10_000, "residual_s": 0.2, "p_return_10s": 0.62}
    assert not pays(0, spec=spec, **x)
    assert pays(6, spec=spec, **x)
    assert not pays(6, spec=spec + ",eta=0", **x)


def test_continuum_weighs_seconds_by_the_share_of_the_pool():
    """16 tokens a block. The same chain holds a tenth of one pool and a hundredth of another."""
    x = {"tokens": 16_000, "residual_s": 5, "p_return_10s": 0.3}
    spec = "continuum:linear=0.1,square=0"  # .3 x 1.6 s against (.3 x 5 + .7 x 10) s x share
    assert not pays(0, blocks=10_000, spec=spec, **x)
    assert pays(0, blocks=100_000, spec=spec, **x)


def test_continuum_past_its_ttl_is_lru_and_pins_give_way_last():
    kept = {"p_return_10s": 1.0, "residual_s": 0.1, "tokens": 5000, "pool_blocks": 1000, "here_2": 16}
    assert order(
        "continuum", ended={"ended": 1}, old={"idle_s": 50, "tokens": 5000}, older={"idle_s": 60, "tokens": 100},
        kept=kept, cheap=kept | {"tokens": 1000}, waits={"waiting": 1},
    ) == ["ended", "older", "old", "cheap", "kept", "waits"]


def test_continuum_measures_the_delay():
    """Returns are expected after 10 s (no table is warm). Three come after 14 s: a mean delay of 4 s."""
    pool = EvictionPool("continuum", 10, 2, tick_s=14.0)
    for _ in range(4):
        pool.use(0)
    delay, count = pool.here()[continuum.DELAY - continuum.DELAY], pool.here()[continuum.DELAYS - continuum.DELAY]
    assert (delay, count) == (pytest.approx(4.0), 3)


# ---------------------------------------------------------------- Bayes tables
def test_bayes_tables_rank_by_expected_next_use():
    """(1 - p) x residual + p x 300: 60 s; .1 x 300 + .9 x 1 = 30.9 s; 1 s."""
    x = {"slow": {"residual_s": 60}, "maybe": {"residual_s": 1, "p_end": 0.1}, "soon": {"residual_s": 1}}
    assert order("bayes-tables", **x) == ["slow", "maybe", "soon"]
    assert order("bayes-tables:horizon_s=1000", **x) == ["maybe", "slow", "soon"]
    assert score(make("eviction", "bayes-tables"), residual_s=1, p_end=0.1) == pytest.approx(30.9)


def test_bayes_tables_take_what_a_compacted_chain_left_behind():
    """It owns 900 tokens here and can use 500; nobody will ask for the others, even if its request waits."""
    x = {"compacted": {"tokens": 900, "useful": 500, "residual_s": 0.1},
         "waiting": {"tokens": 900, "useful": 500, "waiting": 1, "idle_s": -1}, "late": {
             "tokens": 500, "useful": 500, "residual_s": 200}, "next": {"tokens": 500, "useful": 480, "waiting": 1}}
    assert order("bayes-tables", **x) == ["compacted", "waiting", "late", "next"], "`next` lost a few tokens alone"


def test_bayes_tables_lean_on_idle_time():
    x = {"old": {"residual_s": 5, "idle_s": 10}, "new": {"residual_s": 8, "idle_s": 1}}
    assert order("bayes-tables:idle=0", **x) == ["new", "old"]
    assert order("bayes-tables", **x) == ["old", "new"]


def test_bayes_tables_likely_ended_before_soon_returning():
    pool = learned_pool("bayes-tables", tick_s=0.01)
    for c, tool in enumerate((FAST, SLOW, LAST)):
        pool.use(c, 2, tool=tool)
    assert pool.victim_order() == [2, 1, 0]  # half of those that called LAST never came back


def test_bayes_tables_silence_is_evidence():
    """LAST's returns took 0.1 s: who is silent for 30 s has ended. SLOW's took 60 s: 30 s say nothing."""
    pool = learned_pool("bayes-tables:horizon_s=100")
    pool.use(0, 2, tool=LAST)
    at_once = pool.score(0)
    pool.now += 30.0
    pool.use(1, 2, tool=SLOW)
    assert at_once == pytest.approx(0.5 * 100, rel=0.05)
    assert pool.score(0) > 95
    assert pool.victim_order() == [0, 1]


# ---------------------------------------------------------------- clairvoyant, WA-LRU's cold start
def test_clairvoyant_takes_the_latest_and_spares_the_queue():
    assert order("clairvoyant", soon={"oracle": 3}, never={"oracle": np.inf}, late={"oracle": 800},
                 head={"oracle": np.inf, "waiting": 1}, back={"oracle": 5, "waiting": 1, "queue_log": 2.0},
                 ) == ["never", "late", "soon", "back", "head"]
    assert make("eviction", "clairvoyant").oracle


def test_ends_known_knows_who_comes_back_and_not_when():
    known = {"p_end": 0.9, "idle_s": 1.0}
    assert order("ends-known", soon={"oracle": 900, "residual_s": 2.0, **known}, never={"oracle": np.inf, **known},
                 late={"oracle": 3, "residual_s": 50.0, **known}, waits={"oracle": 5, "waiting": 1},
                 ) == ["never", "late", "soon", "waits"]
    assert make("eviction", "ends-known").oracle


def test_returns_known_knows_how_long_tools_take_and_not_who_comes_back():
    sure, unsure = {"p_end": 0.0, "idle_s": 1.0}, {"p_end": 0.5, "idle_s": 1.0}
    assert order("returns-known", soon={"oracle": 3.0, "residual_s": 99.0, **sure},
                 late={"oracle": 80.0, "residual_s": 2.0, **sure}, never={"oracle": np.inf, "residual_s": 20.0, **sure},
                 waits={"oracle": 5, "waiting": 1}, gone={"ended": 1, "oracle": np.inf},
                 ) == ["gone", "late", "never", "soon", "waits"]
    assert order("returns-known", may_be_gone={"oracle": 3.0, **unsure}, late={"oracle": 80.0, **sure},
                 ) == ["may_be_gone", "late"]
    assert make("eviction", "returns-known").oracle


def test_gaps_are_seconds_between_a_release_and_the_next_use():
    trace = generate("swe-bench", 3, sessions=6, rate_per_min=60.0, max_context=20_000)
    config = SimConfig(kv_tokens=40_000)
    prepared = prepare(record_reference(trace, config), 40_000)
    plain, told = (make_cursor(prepared, make("eviction", name)).script for name in ("belady", "returns-known"))
    n, checked = len(plain.time), 0
    for k in np.flatnonzero(plain.event[:, sc.KIND] == END):
        first, last = plain.event[k, sc.AFTER], plain.event[k + 1, sc.AFTER] if k + 1 < n else len(plain.after)
        for at in range(first, last):
            event = plain.after[at]
            want = plain.time[int(event)] - plain.time[k] if event < np.inf else np.inf
            assert told.after[at] == want
            checked += event < np.inf
    assert checked > 50 and make_cursor(prepared, make("eviction", "belady")).script is prepared.script


@pytest.mark.parametrize(("name", "tasks"), [("wa-lru-literal", 30), ("wa-lru:cold_tasks=30", 30), ("wa-lru", 0)])
def test_wa_lru_serves_a_cold_type_by_recency(name, tasks):
    policy = make("eviction", name)
    x = {"recency": 0.5, "p_reuse": 0.4, "size": 0.25, "ttl_left": 0.5, "used": 0.5}
    warm = 0.3 * 0.5 + 0.5 * 0.6 + 0.2 * 0.25
    assert score(policy, tasks=tasks, **x) == pytest.approx(warm)
    if tasks:
        assert score(policy, tasks=tasks - 1, **x) == pytest.approx(0.5)
        expired = x | {"ttl_left": -0.5, "recency": 0.0}
        assert score(policy, tasks=tasks - 1, **expired) > score(policy, tasks=tasks - 1, **x)  # tiers stay


def test_cold_start_is_over_when_enough_have_ended():
    """Two ended chains make the type warm: from then on P_evict is no longer R alone."""
    pool = EvictionPool("wa-lru:cold_tasks=2", 30, 8)
    pool.use(0)
    pool.use(1)
    for c, cold in ((2, True), (3, False)):
        pool.use(c, ended=True)
        assert (pool.score(1) == pool.recency(1)) == cold


def test_cold_tasks_in_range():
    with pytest.raises(UserError, match="cold_tasks"):
        make("eviction", "wa-lru:cold_tasks=-1")
