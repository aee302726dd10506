"""The online TTL learner: its bound holds for every sequence, and the policy keeps the reference's books."""

from __future__ import annotations

import math

import numpy as np
import pytest
from eviction_pool import EvictionPool
from hedge_ttl import HedgeTTL
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.errors import UserError
from saga_rl.policies import features as F
from saga_rl.policies.baselines.eviction import ttl_online
from saga_rl.policies.registry import make

TTLS = np.geomspace(1.0, 600.0, 7)
GAPS = st.one_of(st.just(math.inf), st.floats(0.0, 2000.0))


@given(st.lists(st.tuples(GAPS, st.floats(1.0, 240_000.0)), min_size=1, max_size=120), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_sequence_of_returns_breaks_the_bound(periods: list[tuple[float, float]], anytime: bool) -> None:
    hedge = HedgeTTL(TTLS, 240_000.0, horizon=0 if anytime else len(periods))
    for gap, tokens in periods:
        losses = hedge.losses(gap, tokens)
        assert (losses >= 0).all() and (losses <= 1 + 1e-12).all()
        before = hedge.expected, hedge.median
        hedge.observe(gap, tokens)
        assert hedge.median - before[1] <= 2 * (hedge.expected - before[0]) + 1e-9
        assert hedge.regret() <= hedge.bound() + 1e-9
    if not anytime:
        assert hedge.bound() == pytest.approx(math.sqrt(len(periods) * math.log(7) / 2))


@given(st.lists(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_sequence_of_losses_breaks_the_bound(rounds: list[list[float]]) -> None:
    hedge = HedgeTTL([1.0, 10.0, 100.0], 1000.0)
    for losses in rounds:
        hedge.update(np.array(losses))
        assert hedge.regret() <= hedge.bound() + 1e-9


def test_an_adversary_gets_near_the_bound() -> None:
    """Loss for whoever is heaviest: a bound far above what an adversary reaches would say little."""
    hedge = HedgeTTL([1.0, 10.0], 1000.0, horizon=2000)
    for _ in range(2000):
        losses = np.zeros(2)
        losses[hedge.weights().argmax()] = 1.0
        hedge.update(losses)
    assert 0.3 * hedge.bound() < hedge.regret() <= hedge.bound()


def test_costs_by_hand() -> None:
    """A tenth of the pool, 10,000 tokens at 0.1 s per 1,000: 0.1 a second held, 1 s to compute again, 10 for 100 s."""
    hedge = HedgeTTL([1.0, 10.0, 100.0], 100_000.0, linear=0.1, square=0.0)
    np.testing.assert_allclose(hedge.losses(5.0, 10_000.0) * 11.0, [0.1 + 1.0, 0.5, 0.5])
    np.testing.assert_allclose(hedge.losses(50.0, 10_000.0) * 11.0, [0.1 + 1.0, 1.0 + 1.0, 5.0])
    np.testing.assert_allclose(hedge.losses(math.inf, 10_000.0) * 11.0, [0.1, 1.0, 10.0])


@pytest.mark.parametrize(("gap", "best"), [(20.0, 24.49), (1e4, 1.0)])
def test_it_comes_to_the_best_ttl(gap: float, best: float) -> None:
    """Everyone back after 20 s: the shortest TTL above that. Everyone back after hours: the shortest of all."""
    hedge = HedgeTTL(TTLS, 240_000.0)
    for _ in range(400):
        hedge.observe(gap, 20_000.0)
    assert hedge.totals.argmin() == np.abs(TTLS - best).argmin()
    after = hedge.expected
    for _ in range(400):
        hedge.observe(gap, 20_000.0)
    assert (hedge.expected - after) / 400 < hedge.losses(gap, 20_000.0).min() + 0.1


def test_ttls_that_do_not_rise_are_refused() -> None:
    for ttls in ([1.0], [2.0, 1.0], [0.0, 1.0], [1.0, math.inf]):
        with pytest.raises(UserError, match="rising"):
            HedgeTTL(ttls, 1000.0)


# ---------------------------------------------------------------- the policy
def books(pool: EvictionPool) -> tuple[np.ndarray, float]:
    """Summed losses above the smallest, and the number of periods."""
    return pool.here()[:ttl_online.EXPERTS], pool.here()[ttl_online.EXPERTS]


def test_the_policy_keeps_the_books_of_the_reference() -> None:
    """Three chains of 1, 2 and 3 blocks of 1,000 tokens come back after known gaps; nothing is evicted."""
    pool = EvictionPool("ttl-online", 20, 3, block_tokens=1000, tick_s=0.0)
    hedge = HedgeTTL(TTLS, 20_000.0)
    rng = np.random.default_rng(0)
    last: dict[int, float] = {}
    for _ in range(60):
        c = int(rng.integers(3))
        pool.now += float(rng.exponential(40.0))
        if c in last:
            hedge.observe(pool.now - last[c], 1000.0 * (c + 1))
        pool.use(c, c + 1)
        last[c] = pool.now
    losses, periods = books(pool)
    assert periods == hedge.periods == 60 - 3
    np.testing.assert_allclose(losses, hedge.totals - hedge.totals.min(), rtol=1e-9, atol=1e-12)


def test_what_expires_and_goes_counts_as_held_in_vain() -> None:
    pool = EvictionPool("ttl-online", 10, 3, block_tokens=1000)
    pool.use(0, 5)
    pool.now += 400.0
    pool.chains[0, F.ch.ENDED] = 1.0  # as the caller does when nobody heard of it for longer than the expiry
    pool.use(1, 8)
    hedge = HedgeTTL(TTLS, 10_000.0)
    hedge.observe(math.inf, 5000.0)
    losses, periods = books(pool)
    assert periods == 1
    np.testing.assert_allclose(losses, hedge.totals - hedge.totals.min())
    pool.use(0, 5)
    assert books(pool)[1] == 1, "that period was settled; only the next one counts"


def test_a_told_end_teaches_nothing() -> None:
    pool = EvictionPool("ttl-online", 10, 3, block_tokens=1000)
    pool.use(0, 5, ended=True)
    pool.use(1, 8)
    assert books(pool)[1] == 0


def test_past_the_learned_ttl_goes_first() -> None:
    """All weight on the shortest TTL, 1 s, or on the longest, 600 s; of two chains one is idle for longer."""
    policy = make("eviction", "ttl-online")

    def scores(light: int, idle: float) -> float:
        x = np.zeros(len(F.EVICTION))
        x[F.EV.oracle], x[F.EV.pool_blocks], x[F.EV.idle_s] = np.nan, 100, idle
        x[F.EV.here:F.EV.here + 7] = 1e4
        x[F.EV.here + light], x[F.EV.here + 7] = 0.0, 100.0
        return policy.score(x, policy.params, np.zeros(policy.scratch))

    assert scores(0, 2.0) >= 2.0 > scores(0, 0.5)
    assert scores(6, 601.0) >= 2.0 > scores(6, 500.0)


def test_the_policy_says_what_it_cannot_take() -> None:
    with pytest.raises(UserError, match="low_s"):
        make("eviction", "ttl-online:low_s=10,high_s=5")
    with pytest.raises(UserError, match="price"):
        make("eviction", "ttl-online:price=-1")


def test_the_bound_shrinks_as_the_page_says() -> None:
    hedge = HedgeTTL(TTLS, 240_000.0)
    hedge.periods = 10_000
    assert 0.019 < hedge.bound() / 10_000 < 0.02
