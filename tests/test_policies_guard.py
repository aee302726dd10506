"""The guard: a decision is the policy's, or the fallback's alone, counted and logged."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numba import njit
from policies_rows import row

from saga_rl.errors import UserError
from saga_rl.policies.base import SCORE, Policy
from saga_rl.policies.features import EV
from saga_rl.policies.learned.guard import CHUNK, LOG_EVERY_S, Guard
from saga_rl.policies.registry import make


class Clock:
    """Moves by `tick` at every look."""

    def __init__(self, tick=0.0):
        self.now, self.tick, self.looks = 0.0, tick, 0

    def __call__(self):
        self.looks += 1
        self.now += self.tick
        return self.now


@njit(SCORE)
def _breaks_on_seven(x, params, scratch):
    return np.nan if x[EV.idle_s] == 7.0 else -x[EV.idle_s]


BREAKS = Policy("eviction", "breaks", _breaks_on_seven)
LRU = make("eviction", "lru")


def rows(*idle):
    return np.array([row("eviction", idle_s=i) for i in idle])


def test_within_budget_the_policy_decides():
    guard = Guard(BREAKS, LRU, 1.0, Clock())
    np.testing.assert_array_equal(guard.scores(rows(3, 5, 4), 2), [-3, -5])
    assert not guard.fallbacks and guard.decisions == 1


def test_one_bad_score_hands_the_whole_decision_over(caplog):
    guard = Guard(BREAKS, LRU, 1.0, Clock())
    with caplog.at_level(logging.ERROR):
        np.testing.assert_array_equal(guard.scores(rows(3, 7, 4), 3), [3, 7, 4])
    assert dict(guard.fallbacks) == {"non-finite score": 1}
    assert "breaks" in caplog.text and "non-finite score" in caplog.text and "'lru' decides" in caplog.text
    np.testing.assert_array_equal(guard.scores(rows(3), 1), [-3])


def test_a_late_policy_stops_early():
    many = rows(*range(100, 100 + 10 * CHUNK))
    clock = Clock(tick=0.3)
    guard = Guard(BREAKS, LRU, 0.5, clock)
    np.testing.assert_array_equal(guard.scores(many, len(many)), many[:, EV.idle_s])
    assert dict(guard.fallbacks) == {"over budget": 1}
    assert clock.looks < 6  # start, two chunks, log; not one look a chunk


def test_logs_at_once_and_then_once_a_minute(caplog):
    clock = Clock()
    guard = Guard(BREAKS, LRU, 1.0, clock)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            guard.scores(rows(7), 1)
        assert len(caplog.records) == 1
        clock.now += LOG_EVERY_S
        guard.scores(rows(7), 1)
    assert len(caplog.records) == 2 and guard.fallbacks["non-finite score"] == 6


def test_more_rows_than_ever_before():
    guard = Guard(BREAKS, LRU, 10.0)
    many = rows(*range(10, 1010))
    np.testing.assert_array_equal(guard.scores(many, 1000), -many[:, EV.idle_s])
    assert guard.scores(many, 0).shape == (0,)


def test_what_cannot_serve_is_refused():
    with pytest.raises(UserError, match="know the future"):
        Guard(make("eviction", "belady"), LRU, 1.0)
    with pytest.raises(UserError, match="is of eviction, its fallback of placement"):
        Guard(LRU, make("placement", "sticky"), 1.0)
    with pytest.raises(UserError, match="more than 0 seconds"):
        Guard(LRU, LRU, 0.0)
