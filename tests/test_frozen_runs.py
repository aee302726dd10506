"""Runs whose every figure is kept: a change of structure must not change a result.

`frozen_runs.json` holds a digest a run. Where a change of behaviour is meant, write it anew and say why in the commit:
`python tests/test_frozen_runs.py`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import saga_rl.env  # noqa: F401
from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.constraints import Constraints
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make, names
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile
from saga_rl.sim.openloop.bound import bound

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).with_name("frozen_runs.json")
WORLD: dict[str, Any] = {"profile": load_profile("a100-llama3-70b-tp4"), "end_hint": True}
"""The defaults at the time of the first digests."""
DIGITS = 10
"""Significant digits that are compared: the last ones are a machine's own."""


def _plain(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key)
            yield from _plain(value[key])
    elif isinstance(value, str) or value is None:
        yield str(value)
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value:
            yield from _plain(item)
    else:
        for x in np.asarray(value, np.float64).ravel():
            yield f"{x:.{DIGITS - 1}e}"


def digest(*values: Any) -> str:
    return hashlib.sha256(" ".join(_plain(values)).encode()).hexdigest()[:16]


@cache
def traces() -> dict[str, Trace]:
    return {"web": generate("webarena", 3, sessions=30, rate_per_min=40.0, max_context=20_000),
            "tenants": generate("burstgpt", 4, sessions=40, rate_per_min=60.0, max_context=20_000),
            "swe": generate("swe-bench", 2, sessions=14, rate_per_min=12.0)}


def configs() -> dict[str, tuple[str, SimConfig]]:
    plain = SimConfig(kv_tokens=60_000, **WORLD)
    return {
        "one worker": ("web", plain),
        "population": ("web", replace(plain, population=8, end_hint=False)),
        "cluster": ("web", replace(plain, workers=3, kv_tokens=40_000, end_hint=False, expiry_s=60.0)),
        "tenants": ("tenants", replace(plain, workers=2, kv_tokens=40_000,
                                       constraints=Constraints(service_gap_tokens=20_000.0, afs_preempt_s=5.0))),
        "tier": ("swe", replace(plain, workers=2, kv_tokens=200_000, cpu_tokens=400_000, prefetch_tokens=50_000)),
        "link": ("swe", replace(plain, workers=2, kv_tokens=200_000, link_tokens_per_s=200_000.0)),
        "vllm": ("web", replace(plain, workers=2, kv_tokens=40_000, async_scheduling=True, cpu_tokens=80_000,
                                offloading="vllm", starve_s=600.0, end_hint=False, tool_names=False)),
    }


def run(case: str, policies: Any) -> str:
    name, config = configs()[case]
    result = simulate(traces()[name], config, policies, slo=False)
    figures = {k: v for k, v in result.metrics.items() if k != "wall_s"}
    return digest(figures, result.tct_s, result.steps)


def _policies(name: str) -> Any:
    return preset(str(ROOT / name) if "/" in name else name)


def _alone(decision: str, name: str) -> str:
    chosen = replace(preset("lru"), **{decision: make(decision, name)})
    return run("cluster" if decision == "placement" else "population", chosen)


def _bound() -> str:
    specs = [n for n in names("eviction") if n not in ("belady", "clairvoyant", "learned")]
    return digest(bound(traces()["web"], SimConfig(kv_tokens=60_000, population=8, **WORLD), specs))


TASKS = ("Eviction", "Placement", "Ordering", "Admission", "Joint", "Scheduler")


def _options(task: str) -> dict[str, Any]:
    more = {"Placement": {"workers": 3}, "Scheduler": {"workers": 2, "max_rows": 8}, "Admission": {}}.get(
        task, {"max_rows": 8})
    return {"trace": traces()["web"], "kv_tokens": 40_000, "population": 8, "sessions": 12, "max_decisions": 150,
            "config": WORLD} | (
                {} if task == "Eviction" else {"policies": "saga+"}) | more


def _action(mask: np.ndarray, n: int) -> int:
    rows = np.flatnonzero(mask)
    return int(rows[(n * n + 3 * n) % len(rows)]) if len(rows) else 0


def _single(task: str) -> str:
    env = gym.make(f"saga_rl/{task}-v0", disable_env_checker=True, **_options(task))
    seen: list[Any] = []
    obs, info = env.reset(seed=5)
    for n in range(200):
        seen.append((obs, info["action_mask"], info["decisions"]))
        obs, reward, over, cut, info = env.step(_action(info["action_mask"], n))
        seen.append((reward, over, cut))
        if over or cut:
            obs, info = env.reset()
    return digest(seen)


def _vector(task: str) -> str:
    env = gym.make_vec(VECTORS.format(task), num_envs=3, episodes=4, **_options(task))
    seen: list[Any] = []
    obs, infos = env.reset(seed=5)
    for n in range(200):
        seen.append((obs, infos["action_mask"], infos["decisions"]))
        obs, *rest, infos = env.step(np.array([_action(m, n + b) for b, m in enumerate(infos["action_mask"])]))
        seen.append(rest)
    return digest(seen)


VECTORS = "saga_rl/{}-v0"
CASES: dict[str, Any] = {
    **{f"{case}: {name}": (lambda case=case, name=name: run(case, _policies(name))) for case in configs()
       for name in ("lru", "saga", "saga+", "likely", "checkpoints/joint", "checkpoints/joint-hidden")},
    **{f"{decision}: {name}": (lambda decision=decision, name=name: _alone(decision, name))
       for decision in DECISIONS for name in names(decision)
       if name != "learned" and not make(decision, name).oracle},
    "bound": _bound,
    **{f"{task}": (lambda task=task: _single(task)) for task in TASKS},
    **{f"{task}Vec": (lambda task=task: _vector(task)) for task in TASKS},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_what_it_was(case: str) -> None:
    assert CASES[case]() == json.loads(KEPT.read_text())[case], "figures changed; if that is meant, write them anew"


if __name__ == "__main__":
    found = {}
    for case, made in CASES.items():
        found[case] = made()
        print(case, found[case], file=sys.stderr)
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
