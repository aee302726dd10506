"""Named tasks: a workload, a capacity and a set of decisions under one id, so that scores can be compared.

All decisions of a scheduler (`task="scheduler"`, which an option may override: `gymnasium.make("saga_rl/Swe-P1-v0",
task="eviction")`), on the sessions for training (`part`; judge on `part="test"`), a closed population on one worker, at
the capacity P1 of `saga_rl.learn.judge`, at which LRU computes about 2.5 times as many tokens again as Bélády does
under the assumed costs that P1 was found with. Costs and what clients announce are `SimConfig`'s defaults: a fitted
profile, ends hidden. Definitions and capacities are written down so that they cannot move. Recorded traces lie in the
folder that the environment variable SAGA_RL_DATA names. `benchmarks/reference_table.py` gives the scores of known
policies.
"""

from __future__ import annotations

from typing import Any

SEED = 5
"""Of what is generated, and of the split; `saga_rl.learn.judge.sessions` has it, `PARTS` and `ROUNDS` from here."""
PARTS = {"train": 0.5, "validation": 0.2, "test": 0.3}
ROUNDS = 4
"""Sessions of an episode for each that is alive at once."""
DATA = "SAGA_RL_DATA"


def _task(population: int, kv_tokens: int, **source: Any) -> dict[str, Any]:
    return {"task": "scheduler", **source, "split": PARTS, "part": "train", "split_seed": SEED,
            "config": {"workers": 1}, "population": population, "sessions": ROUNDS * population, "kv_tokens": kv_tokens}


def _made(generator: str, population: int, kv_tokens: int, sessions: int, **params: Any) -> dict[str, Any]:
    return _task(population, kv_tokens, generator=generator, params={"seed": SEED, "sessions": sessions, **params})


def _recorded(file: str, importer: str, population: int, kv_tokens: int, **params: Any) -> dict[str, Any]:
    return _task(population, kv_tokens, trace=f"${DATA}/{file}", importer=importer, params=params)


NAMED: dict[str, dict[str, Any]] = {
    "saga_rl/Swe-P1-v0": _made("swe-bench", 9, 418_096, 2400),
    "saga_rl/Web-P1-v0": _made("webarena", 10, 495_680, 3200),
    "saga_rl/Burst-P1-v0": _made("burstgpt", 12, 472_400, 1600),
    "saga_rl/Swe-Hitl-P1-v0": _made("swe-bench", 12, 504_416, 2400, hitl_share=0.1),
    "saga_rl/Hetero-P1-v0": _made("hetero", 16, 419_104, 3200),
    "saga_rl/Coding-P1-v0": _made("coding", 12, 543_792, 1200),
    "saga_rl/Weka-P1-v0": _recorded("weka_claude_code/traces.jsonl.gz", "weka", 16, 1_222_992),
    "saga_rl/Katas-P1-v0": _recorded("claude_code_katas/calls.jsonl.gz", "katas", 16, 858_752, rate_per_min=8.0)}
"""By id: options of `saga_rl.env.settings.Settings`."""


def short_name(task: str) -> str:
    """A named task's id without what all have in common: saga_rl/Swe-P1-v0 -> Swe-P1."""
    return task.removeprefix("saga_rl/").removesuffix("-v0")
