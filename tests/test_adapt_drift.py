"""The drift detector: alarms on a rise, no more false ones than it says, and what the guard counts as an error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.errors import UserError
from saga_rl.policies.learned.drift import Detector, DriftGuard


def first_alarm(detector: Detector, errors: np.ndarray) -> int:
    """Number of the error that raises the alarm, from 1; 0 = none."""
    for i, x in enumerate(errors, 1):
        if detector.add(float(x)):
            return i
    return 0


@pytest.mark.parametrize("kind", ["coins", "bounded", "uneven"])
def test_false_alarms_are_as_rare_as_stated(kind: str) -> None:
    """200 streams of 300 errors whose mean is just what was expected: an alarm in at most n / patience of them. Uneven:
    stretches of equal errors, of random length, between stretches of coins; only the mean given the past is fixed."""
    rng = np.random.default_rng(1)
    n, patience, alarms = 300, 3000.0, 0
    for _ in range(200):
        if kind == "coins":
            x = (rng.random(n) < 0.3).astype(float)
        elif kind == "bounded":
            x = rng.beta(3.0, 7.0, n)
        else:
            quiet = np.repeat(rng.random(n) < 0.5, rng.integers(1, 40, n))[:n]
            x = np.where(quiet, 0.3, rng.random(n) < 0.3)
        alarms += first_alarm(Detector(0.3, patience), x) > 0
    assert alarms <= 200 * n / patience


def test_the_mean_run_to_a_false_alarm_is_at_least_the_patience() -> None:
    rng = np.random.default_rng(2)
    runs = []
    for _ in range(40):
        detector, at = Detector(0.4, 100.0), 0
        while not at:
            x = (rng.random(20_000) < 0.4).astype(float)
            at = first_alarm(detector, x)
            assert at
        runs.append(at)
    assert np.mean(runs) + 2 * np.std(runs) / np.sqrt(len(runs)) >= 100.0


@pytest.mark.parametrize(("before", "after"), [(0.2, 0.4), (0.3, 0.6), (0.05, 0.2)])
def test_a_rise_is_noticed(before: float, after: float) -> None:
    """After 5,000 good errors the mean rises. ln(patience) / KL errors are needed on average by the best stake."""
    rng = np.random.default_rng(3)
    kl = after * np.log(after / before) + (1 - after) * np.log((1 - after) / (1 - before))
    delays = []
    for _ in range(20):
        detector = Detector(before, 1e6)
        assert first_alarm(detector, (rng.random(5000) < before * 0.9).astype(float)) == 0
        delays.append(first_alarm(detector, (rng.random(5000) < after).astype(float)))
    assert min(delays) > 0
    assert np.mean(delays) < 4 * np.log(1e6) / kl


def test_one_error_by_hand() -> None:
    """expected .5: stakes .125, .25, .5, 1 and 2 cut to .9 / .5 = 1.8. After one error of 1 each M is 1 + s / 2."""
    low = Detector(0.5, 1.36)  # mean of 1.0625, 1.125, 1.25, 1.5, 1.9 = 1.3675
    high = Detector(0.5, 1.37)
    assert low.add(1.0) and not high.add(1.0)
    assert (low.alarms, low.seen, high.alarms, high.seen) == (1, 0, 0, 1)


@given(st.lists(st.floats(0.0, 0.25), max_size=300))
@settings(max_examples=50, deadline=None)
def test_errors_below_what_is_expected_never_alarm(errors: list[float]) -> None:
    assert first_alarm(Detector(0.25, 2.0), np.array(errors)) == 0


def test_values_out_of_range_are_refused() -> None:
    for expected, patience in ((0.0, 10.0), (1.0, 10.0), (0.3, 1.0), (0.3, float("inf"))):
        with pytest.raises(UserError):
            Detector(expected, patience)
    with pytest.raises(ValueError, match="outside"):
        Detector(0.3).add(1.5)


def test_pairs_are_judged_by_who_returns_first() -> None:
    guard = DriftGuard(Detector(0.5, 1e6))
    guard.evicted(1, 2)
    guard.evicted(3, 5)
    guard.evicted(4, 4)
    guard.returned(9)
    assert guard.pairs == 0
    guard.returned(1)  # the victim of the first pair: an error
    assert (guard.pairs, guard.errors) == (1, 1)
    guard.returned(5)  # the one kept in the second pair: right
    assert (guard.pairs, guard.errors) == (2, 1)
    for chain in (2, 3, 1, 4):
        guard.returned(chain)
    assert (guard.pairs, guard.errors) == (2, 1), "a pair is judged once"


def test_a_wait_belongs_to_one_pair() -> None:
    guard = DriftGuard(Detector(0.5, 1e6))
    for kept in (2, 3, 4):
        guard.evicted(1, kept)
    guard.evicted(5, 2)
    assert not guard.fresh(1) and not guard.fresh(2) and guard.fresh(3) and guard.fresh(5)
    guard.returned(1)
    assert (guard.pairs, guard.errors) == (1, 1)
    assert guard.fresh(1), "its next wait"
    assert not guard.fresh(2), "still the same wait"
    guard.evicted(5, 2)
    guard.returned(5)
    assert guard.pairs == 1
    guard.returned(2)
    assert guard.pairs == 1 and guard.fresh(2)
    guard.spend(3)
    guard.evicted(3, 4)
    guard.returned(3)
    assert guard.pairs == 1 and guard.fresh(3)


def test_a_chain_of_another_kind_under_the_same_number_decides_nothing() -> None:
    guard = DriftGuard(Detector(0.5, 1e6))
    guard.evicted(1, 2)
    guard.forget(1)
    assert guard.fresh(1)
    guard.returned(1)
    guard.returned(2)
    assert guard.pairs == 0


def test_old_pairs_are_forgotten() -> None:
    guard = DriftGuard(Detector(0.5, 1e6), pending=2)
    for victim in (1, 2, 3):
        guard.evicted(victim, 10 + victim)
    guard.returned(1)
    assert guard.pairs == 0
    for kept in (11, 12, 13):
        guard.returned(kept)
    assert (guard.pairs, guard.errors) == (2, 0)


def test_chance_is_no_drift_whoever_shares_a_cause() -> None:
    """Victims and survivors are drawn by lot, so no policy is to blame: each loses blocks ten times, and many never
    come back. With one error a cause, false alarms are as rare as the detector promises."""
    patience, n, alarms, pairs, runs = 1000.0, 40, 0, 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        guard = DriftGuard(Detector(0.5, patience))
        due = np.where(rng.random(n) < 0.4, np.inf, rng.exponential(30.0, n))  # when each is back
        for t in range(200):
            for chain in np.flatnonzero(due <= t):
                guard.returned(int(chain))
                due[chain] = np.inf if rng.random() < 0.4 else t + rng.exponential(30.0)
            victim, kept = rng.choice(n, 2, replace=False)
            for _ in range(10):
                guard.evicted(int(victim), int(kept))
        alarms += guard.fallen_back
        pairs += guard.pairs
    assert 10 < pairs / runs < 50, "so an alarm has a chance of 5 % at most"
    assert alarms / runs <= 0.1  # three standard errors of 200 runs more


def test_the_guard_falls_back_once_and_is_restored() -> None:
    guard = DriftGuard(Detector(0.2, 1000.0))
    for pair in range(200):
        guard.evicted(2 * pair, 2 * pair + 1)
        guard.returned(2 * pair)
    assert guard.fallen_back and guard.fallbacks == 1
    guard.restore()
    assert not guard.fallen_back
    for pair in range(1000, 1200):
        guard.evicted(2 * pair, 2 * pair + 1)
        guard.returned(2 * pair + 1)
    assert not guard.fallen_back and guard.fallbacks == 1
