"""What each policy does, on cases small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest
from policies_rows import score, write_checkpoint

from saga_rl.errors import UserError
from saga_rl.policies.presets import preset, preset_names
from saga_rl.policies.registry import make


def victims(name: str, **candidates: dict) -> list[str]:
    """The candidates in the order in which they would be evicted."""
    policy = make("eviction", name)
    return sorted(candidates, key=lambda c: -score(policy, **candidates[c]))


def log(x: float) -> float:
    return float(np.log1p(x))


def test_lru_takes_the_longest_idle_even_if_it_waits():
    assert victims("lru", a={"idle_s": 5}, b={"idle_s": 9, "waiting": 1}, c={"idle_s": 1, "ended": 1}) == [
        "b", "a", "c"]


def test_lru_protect_takes_the_queue_last_and_from_its_back():
    assert victims(
        "lru-protect", fresh={"idle_s": 0}, old={"idle_s": 9}, head={"idle_s": 99, "waiting": 1},
        back={"idle_s": 50, "waiting": 1, "queue_log": log(4000)},
        before_back={"idle_s": 70, "waiting": 1, "queue_log": log(3999)},
    ) == ["old", "fresh", "back", "before_back", "head"]


def test_wa_lru_formula():
    x = {"recency": 0.5, "p_reuse": 0.4, "size": 0.25, "ttl_left": 0.5}
    assert score(make("eviction", "wa-lru"), **x) == pytest.approx(0.3 * 0.5 + 0.5 * 0.6 + 0.2 * 0.25)
    only_size = make("eviction", "wa-lru:alpha=0,beta=0,gamma=7")
    assert score(only_size, **x) == pytest.approx(0.25)
    with pytest.raises(UserError, match="all 0"):
        make("eviction", "wa-lru:alpha=0,beta=0,gamma=0")


def test_wa_lru_tiers_outweigh_p_evict():
    worst = {"recency": 1, "p_reuse": 0, "size": 1}
    assert victims(
        "wa-lru", within=worst | {"ttl_left": 0.1}, expired={"p_reuse": 1, "ttl_left": -0.1},
        ended={"p_reuse": 1, "ttl_left": 1, "ended": 1}, waits=worst | {"ttl_left": -1, "waiting": 1},
    ) == ["ended", "expired", "within", "waits"]


def test_wa_lru_literal_by_pressure():
    within = {"recency": 1, "p_reuse": 0, "size": 1, "ttl_left": 0.1, "idle_s": 5}
    expired = {"p_reuse": 1, "ttl_left": -0.1, "idle_s": 2}
    for used, first in ((0.5, "expired"), (0.9, "expired"), (0.92, "within"), (0.96, "within")):
        order = victims("wa-lru-literal", within=within | {"used": used}, expired=expired | {"used": used})
        assert order[0] == first, used
    lru = [within | {"used": 0.96, "recency": 0}, expired | {"used": 0.96, "idle_s": 6}]
    assert victims("wa-lru-literal", within=lru[0], expired=lru[1])[0] == "expired"


def test_wa_lru_literal_does_not_spare_the_queue_and_drops_whole():
    policy = make("eviction", "wa-lru-literal")
    assert policy.whole_chain and policy.drop_expired
    x = {"ttl_left": -1, "p_reuse": 1, "recency": 0.3}
    assert score(policy, waiting=1, **x) == score(policy, **x)
    lazy = make("eviction", "wa-lru")
    assert not lazy.whole_chain and not lazy.drop_expired


def test_youngest_tiers_and_order():
    assert victims(
        "youngest", old={"age_s": 900}, young={"age_s": 899.999}, silent={"age_s": 5000, "idle_s": 301},
        ended={"age_s": 9000, "ended": 1}, waits={"age_s": 1, "waiting": 1}, late={"age_s": 5001, "idle_s": 301},
    ) == ["ended", "silent", "late", "young", "old", "waits"]


def test_youngest_expiry_is_a_parameter():
    x = {"a": {"age_s": 50, "idle_s": 40}, "b": {"age_s": 10, "idle_s": 3}}
    assert victims("youngest", **x) == ["b", "a"]
    assert victims("youngest:expiry_s=30", **x) == ["a", "b"]


def test_belady_takes_the_farthest_next_use():
    assert victims("belady", soon={"oracle": 3}, never={"oracle": np.inf}, late={"oracle": 8}) == [
        "never", "late", "soon"]


def chosen(name: str, *workers: dict) -> int:
    policy = make("placement", name)
    return int(np.argmax([score(policy, **w) for w in workers]))


def test_least_load_ignores_home():
    assert chosen("least-load", {"load": 0.2, "home": 1}, {"load": 0.1}) == 1


def test_sticky_stays_home_under_any_load():
    assert chosen("sticky", {"load": 0}, {"load": 50, "home": 1}) == 1
    assert chosen("sticky", {"load": 0.3}, {"load": 0.2}, {"load": 0.2}) == 1


def test_least_sessions_stays_home_and_counts_sessions_before_load():
    assert chosen("least-sessions", {"sessions": 0}, {"sessions": 1, "load": 50, "home": 1}) == 1
    assert chosen("least-sessions", {"sessions": 3 / 256}, {"sessions": 2 / 256, "load": 1000}) == 1
    assert chosen("least-sessions", {"sessions": 2 / 256, "load": 0.3}, {"sessions": 2 / 256, "load": 0.2}) == 1


@pytest.mark.parametrize(("load", "where"), [(0.79, 1), (0.8, 0)])
def test_saga_leaves_home_at_theta(load, where):
    assert chosen("saga", {"load": 0.1}, {"load": load, "home": 1}) == where


def test_saga_theta_is_a_parameter_and_home_may_still_win():
    assert chosen("saga:theta=1.5", {"load": 0.1}, {"load": 1.4, "home": 1}) == 1
    assert chosen("saga", {"load": 3.0}, {"load": 2.0, "home": 1}) == 1


def queue(name: str, **requests: dict) -> list[str]:
    policy = make("ordering", name)
    return sorted(requests, key=lambda r: score(policy, **requests[r]))


@pytest.mark.parametrize("clock", [0.0, 1.7e9])
def test_fcfs_puts_preempted_first(clock):
    assert queue("fcfs", a={"arrival_s": clock + 2}, b={"arrival_s": clock + 1},
                 p={"arrival_s": clock + 3, "preempted": 1}) == ["p", "b", "a"]


def test_session_fcfs_goes_by_session():
    assert queue("session-fcfs", a={"arrival_s": 9, "session_s": 1}, b={"arrival_s": 2, "session_s": 2}) == ["a", "b"]


@pytest.mark.parametrize("clock", [0.0, 1.7e9])
@pytest.mark.parametrize("scale", [0.01, 1.0, 500.0])
def test_afs_then_session_start(clock, scale):
    assert queue(
        "afs", low={"afs": 1.0 * scale, "session_s": clock}, high={"afs": 1.01 * scale, "session_s": clock + 99},
        same={"afs": 1.0 * scale, "session_s": clock + 0.001},
        preempted={"afs": 0, "session_s": clock + 5000, "preempted": 1},
    ) == ["preempted", "high", "low", "same"]


def admits(name: str, **values: float) -> bool:
    return score(make("admission", name), **values) > 0


def test_none_admits_what_cannot_fit():
    assert admits("none", need=1e6, pool=1)


def test_grow_holds_new_chains_only():
    x = {"live": 50, "session_growth": 60, "pool": 100, "new": 1}
    assert admits("grow", need=20, **x)
    assert not admits("grow", need=21, **x)
    assert admits("grow", need=21, **(x | {"new": 0}))
    assert not admits("grow:factor=1", need=0, **x)


def test_reserve_older_holds_what_would_push_older_sessions_out():
    x = {"pinned": 30, "growth": 10, "pool": 100, "free": 0, "evictable": 70}
    assert admits("reserve-older", need=40, older_idle=20, **x)
    assert not admits("reserve-older", need=41, older_idle=20, **x)
    assert admits("reserve-older", need=60, older_idle=0, **x)


def test_presets():
    assert preset("lru").names() == {"eviction": "lru", "placement": "sticky", "ordering": "fcfs", "admission": "none"}
    assert preset("saga").names() == {"eviction": "wa-lru", "placement": "saga", "ordering": "afs", "admission": "none"}
    assert preset("saga+").names() == {"eviction": "youngest", "placement": "saga", "ordering": "session-fcfs",
                                       "admission": "reserve-older"}
    with pytest.raises(UserError, match=r"choose one of: saga.*checkpoint's folder") as e:
        preset("sagaa")
    assert all(name in str(e.value) for name in preset_names())


def test_a_checkpoint_is_a_preset_with_the_policies_it_names(tmp_path):
    write_checkpoint(tmp_path / "place", "placement")
    others = {"placement": "learned:../place", "ordering": "session-fcfs", "admission": "grow:factor=0.25"}
    folder = write_checkpoint(tmp_path / "evict", others=others)
    got = preset(str(folder))
    assert got.names() == {"eviction": "learned", "placement": "learned", "ordering": "session-fcfs",
                           "admission": "grow"}
    assert got.admission.params[0] == 0.25
    assert not np.array_equal(got.eviction.params[:4], got.placement.params[:4])
