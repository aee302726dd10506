"""Workloads: parts share no group, a seed is one arrangement, points follow their rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_rl.aeg.generators import generate, shift
from saga_rl.aeg.io import equal
from saga_rl.errors import UserError
from saga_rl.learn.judge import points, sessions
from saga_rl.learn.judge.sessions import Definition, parts_of
from saga_rl.learn.judge.workloads import workload, workload_names


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`swe` of short contexts, kept apart from the user's cache."""
    made = Definition("webarena", 3, 60, {"max_context": 16_000})
    monkeypatch.setitem(sessions.DEFINED, "swe", made)
    monkeypatch.setattr(points, "cache_folder", lambda: tmp_path / "kept")
    for cached in (points.pressure, points.sustained, points.peak, sessions._parts, sessions.arranged):
        cached.cache_clear()


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points as if they had been found."""
    monkeypatch.setattr(points, "pressure", lambda *a: {"kv_tokens": 160_000})
    monkeypatch.setattr(points, "sustained", lambda *a: {"per_worker_per_min": 2.0})
    monkeypatch.setattr(points, "peak", lambda *a: {"per_worker_per_min": 3.0})


def test_parts_are_disjoint_and_whole() -> None:
    w = workload("web")
    parts = {p: set(w.split(p).sessions.group) for p in sessions.PARTS}
    assert sum(map(len, parts.values())) == w.definition.sessions == len(set().union(*parts.values()))
    for part, share in sessions.PARTS.items():
        assert len(parts[part]) == pytest.approx(share * w.definition.sessions, abs=1)


def test_block_ids_are_cut_by_time_and_groups_stay_together() -> None:
    trace = generate("webarena", 1, sessions=20, max_context=16_000)
    groups = [f"g{i // 3}" for i in range(20)]
    trace = replace(trace, meta=replace(trace.meta, hash_block_tokens=16),
                    sessions=replace(trace.sessions, group=groups))
    parts = parts_of(trace)
    assert [p.n_sessions for p in parts.values()] == [10, 2, 5], "of groups 3 and 4 the later sessions are left out"
    found = [set(p.sessions.group) for p in parts.values()]
    assert not found[0] & found[1] and not found[1] & found[2] and not found[0] & found[2]
    ends = [p.sessions.arrival_s for p in parts.values()]
    assert ends[0].max() <= ends[1].min() and ends[1].max() <= ends[2].min()


def test_a_seed_is_one_arrangement(fixed: None) -> None:
    w = workload("web")
    one, config = w.episode("test", 7, 30)
    again, _ = workload("web", hidden=True).episode("test", 7, 30)
    assert equal(one, again), "hidden ends change nothing else"
    assert not equal(one, w.episode("test", 8, 30)[0])
    assert set(one.sessions.session_id) <= set(w.split("test").sessions.session_id)
    assert config.population == w.definition.population and config.end_hint
    assert not workload("web", hidden=True).config().end_hint


def test_load_only_changes_when_sessions_come(fixed: None) -> None:
    w = workload("swe")
    slow, config = w.episode("train", 3, 40, point="P2", workers=2)
    fast, _ = w.episode("train", 3, 40, point="P2", workers=2, load=2.0)
    assert config.population == 0 and config.workers == 2
    assert slow.sessions.session_id == fast.sessions.session_id
    assert slow.sessions.arrival_s == pytest.approx(2 * fast.sessions.arrival_s)
    many, _ = w.episode("train", 3, 700, point="P2", workers=2)
    rate = 60 * (many.n_sessions - 1) / np.ptp(many.sessions.arrival_s)
    assert rate == pytest.approx(0.95 * 2 * 2.0, rel=0.1), ".95 of what stock sustains, on both workers"


def test_phases_keep_their_mixes(fixed: None) -> None:
    trace, config = workload("shift").episode("test", 1, point="P3", workers=1)
    assert config.population == 0
    kinds = {s.agent.name: s.tenant for s in shift.sources()}
    seen = [kinds[trace.agent_types[k]] for k in trace.sessions.agent_type]
    for k, mix in enumerate(shift.MIXES):
        here = (trace.sessions.arrival_s // shift.DEFAULTS.period_s) == k
        assert here.any() and {seen[i] for i in np.flatnonzero(here)} <= set(mix)
    with pytest.raises(UserError, match="shift"):
        workload("web").episode("test", 1, point="P3")


def test_drift_changes_to_what_came_never_before(fixed: None) -> None:
    trace, _ = workload("drift").episode("test", 2, 40)
    kinds = [trace.agent_types[k] for k in trace.sessions.agent_type]
    assert kinds == ["swe-bench"] * 20 + ["foreign"] * 20


@pytest.mark.parametrize(("tried", "kv"), [
    ([(1, 1.2, 6.0), (2, 1.9, 3.5), (3, 2.5, 2.0)], 2), ([(1, 1.9, 4.5), (2, 2.5, 3.9), (3, 3.6, 2.0)], 2),
    ([(1, 1.9, 6.0), (2, 3.0, 5.0)], 2), ([(1, 1.2, 3.0), (2, 1.5, 2.0)], 2), ([(1, None, 2.0), (2, None, 1.0)], 1)])
def test_the_point_is_the_most_pressure_in_range_that_is_safe(tried: list, kv: int) -> None:
    rows = [{"kv_tokens": k, "lru_over_belady": r, "stock_over_infinite": s} for k, r, s in tried]
    assert points.choose(rows)["kv_tokens"] == kv


def test_points_are_found_once_and_on_training_sessions(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    whole = sessions.arranged.__wrapped__

    def watch(w: Any, part: str, *rest: Any) -> Any:
        asked.append(part)
        return whole(w, part, *rest)

    monkeypatch.setattr(points, "arranged", watch)
    found = points.pressure("swe")
    assert asked and set(asked) == {"train"}
    assert found["kv_tokens"] == points.choose(found["tried"])["kv_tokens"]
    longest = max(int((t.steps.prompt_tokens + t.steps.output_tokens).max())
                  for t in (workload("swe").split(p) for p in sessions.PARTS))
    assert found["kv_tokens"] >= longest
    asked.clear()
    points.pressure.cache_clear()
    assert points.pressure("swe") == found and not asked, "read from the cache folder"


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="web"):
        workload("wbe")
    with pytest.raises(UserError, match="data folder"):
        workload("weka", data=tmp_path)
    with pytest.raises(UserError, match="test"):
        workload("web").split("tset")
    assert "weka" not in workload_names(tmp_path) and "swe" in workload_names()


def test_recorded_collections(shared_data: Path) -> None:
    w = workload("mooncake-synthetic", data=shared_data)
    parts = [set(w.split(p).sessions.group) for p in sessions.PARTS]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
    trace = sessions.arranged(w, "test", 1, 50, 30.0)
    assert 60 * 49 / np.ptp(trace.sessions.arrival_s) == pytest.approx(30.0)
