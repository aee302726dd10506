"""Paired comparison: known answers, coverage of the interval, and how collapses are handled."""

from __future__ import annotations

import numpy as np
import pytest

from saga_rl.experiments.intervals import COLLAPSE, bootstrap, paired_ratio
from saga_rl.learn.cards import command
from saga_rl.learn.judge.evaluation import _against_all, _compare
from saga_rl.learn.script import numbers, words


def test_a_constant_ratio_is_found_exactly() -> None:
    base = np.array([10.0, 40.0, 7.0, 100.0])
    result = paired_ratio(0.8 * base, base)
    assert result is not None
    assert result["ratio"] == pytest.approx(0.8)
    assert (result["low"], result["high"]) == (pytest.approx(0.8), pytest.approx(0.8))
    assert result["verdict"] == "better"
    for factors, verdict in ((1.2, "worse"), (np.array([0.8, 1.2, 0.9, 1.1]), "no difference shown")):
        other = paired_ratio(base * factors, base)
        assert other is not None and other["verdict"] == verdict
    assert paired_ratio(base[:2], base[:2]) is None, "two pairs make no interval"


@pytest.mark.parametrize("n", [5, 10, 30])
def test_the_interval_covers_about_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = 0
    for i in range(200):
        low, high = bootstrap(rng.normal(1.0, 1.0, n), seed=i)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_collapsed_seeds_are_counted_and_left_out() -> None:
    infinite = np.full(4, 10.0)
    arms = _compare({"lru": [20.0, 20.0, 20.0, COLLAPSE * 10 + 1], "x": [10.0, 10.0, 10.0, 1000.0]},
                    {"lru": [30.0, 30.0, 30.0, 30.0], "x": [30.0, 30.0, 30.0, 1.0]}, infinite)
    assert arms["lru"]["collapsed"] == 1 and arms["x"]["collapsed"] == 1
    assert arms["x"]["pairs"] == 3
    assert arms["x"]["mean_vs_stock"]["ratio"] == pytest.approx(0.5)
    assert arms["x"]["p95_vs_stock"]["ratio"] == pytest.approx(1.0)
    always = _compare({"lru": [99.0] * 4, "x": [10.0] * 4}, {"lru": [1.0] * 4, "x": [1.0] * 4}, infinite)
    assert always["x"]["mean_vs_stock"] is None and always["x"]["pairs"] == 0


def test_the_last_arm_is_held_against_every_other() -> None:
    infinite = np.full(4, 10.0)
    mean = {"lru": [20.0, 20.0, 20.0, 99.0], "wild": [99.0] * 4, "x": [10.0, 10.0, 10.0, 33.0]}
    against = _against_all(mean, mean, infinite)
    assert set(against) == {"lru", "wild"}
    assert against["wild"] is None
    assert against["lru"] is not None and against["lru"]["pairs"] == 3
    assert against["lru"]["ratio"] == pytest.approx(0.5)


def test_lists_on_the_command_line() -> None:
    assert words("lru, wa-lru:alpha=1,beta=2 ,belady") == ["lru", "wa-lru:alpha=1,beta=2", "belady"]
    assert numbers("--x", "1,2.5", 0) == [1.0, 2.5]
    assert command(["training/collect.py", "a b"]) == "python training/collect.py 'a b'"
