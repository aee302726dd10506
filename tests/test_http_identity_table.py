"""Which session each request belongs to, over many conversations at once: the bounds of docs/reference/identity.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from identity_kit.bodies import PATHS
from identity_kit.judge import judge
from identity_kit.recorded import lmcache_bodies, lmcache_text, tau
from identity_kit.rollouts import Shape, rollouts

FEW: dict[str, Any] = {"tasks": 8, "runs": 6, "seed": 3}


def at_least(found: dict[str, Any], precision: float, recall: float) -> None:
    assert found["pairs"] > 300
    assert found["precision"] >= precision and found["recall"] >= recall, found


@pytest.mark.parametrize("api", PATHS)
def test_runs_of_one_task_are_told_apart(api: str) -> None:
    found = judge(rollouts(api, Shape(**FEW)))
    at_least(found, 0.99, 0.99)
    right, subs = map(int, found["sub-agents"].split("/"))
    assert right == subs > 0, "sub-agents are found by their tasks"


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize("how", ["compact", "window"])
def test_history_that_is_summed_up_or_cut_stays_its_conversation(api: str, how: str) -> None:
    at_least(judge(rollouts(api, Shape(**FEW, **{how: 16 if how == "compact" else 8}))), 0.95, 0.95)


def test_one_name_for_all_is_worth_no_more_than_none() -> None:
    at_least(judge(rollouts("chat", Shape(**FEW)), "gateway"), 0.95, 0.95)


@pytest.mark.parametrize("kind", ["miniswe", "taubench"])
def test_lmcache(shared_data: Path, kind: str) -> None:
    folder = shared_data / "lmcache_agent"
    at_least(judge(lmcache_bodies(folder, kind)), 0.99, 0.99)
    at_least(judge(lmcache_text(folder, kind)), 0.99, 0.99)


def test_tau_bench(shared_data: Path) -> None:
    at_least(judge(tau(shared_data / "tau_bench_airline")), 0.99, 0.99)
