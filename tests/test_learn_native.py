"""Native environments under Stable-Baselines3: the vector it sees is theirs, and fine-tuning on them is determined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_env_finetune import tune, work  # noqa: F401  (a fixture)

from saga_rl.aeg.generators import generate
from saga_rl.aeg.trace import Trace
from saga_rl.env.vector import TaskVectorEnv
from saga_rl.errors import UserError

pytest.importorskip("sb3_contrib")
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from saga_rl.learn.online.sb3_vector import NativeVec


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate("webarena", 3, sessions=8, rate_per_min=30.0, max_context=20_000)


def make(trace: Trace, envs: int, kv: int, **options: Any) -> TaskVectorEnv:
    return TaskVectorEnv("joint", envs, trace, kv, **{"max_rows": 6, "population": 5, "episodes": 2, "max_decisions": 9,
                                                      "autoreset_mode": "SameStep", **options})


def test_it_is_the_native_environments_side_by_side(trace: Trace) -> None:
    sizes = ((2, 60_000), (3, 50_000))
    alone = [make(trace, n, kv) for n, kv in sizes]
    vec = NativeVec([make(trace, n, kv) for n, kv in sizes])
    assert vec.num_envs == 5 and is_masking_supported(vec)
    vec.seed(3)
    obs = vec.reset()
    theirs = [v.reset(seed=[3 + at + i for i in range(v.num_envs)])[0] for v, at in zip(alone, (0, 2), strict=True)]
    rng, ended = np.random.default_rng(0), 0
    for _ in range(40):
        np.testing.assert_array_equal(obs, np.concatenate(theirs))
        masks = get_action_masks(vec)
        np.testing.assert_array_equal(masks, np.concatenate([v.action_masks() for v in alone]))
        actions = np.array([rng.choice(np.flatnonzero(m)) for m in masks])
        obs, rewards, done, infos = vec.step(actions)
        parts = [v.step(a) for v, a in zip(alone, (actions[:2], actions[2:]), strict=True)]
        theirs = [p[0] for p in parts]
        np.testing.assert_array_equal(rewards, np.concatenate([p[1] for p in parts]).astype(np.float32))
        np.testing.assert_array_equal(done, np.concatenate([p[2] | p[3] for p in parts]))
        for b in np.flatnonzero(done):
            part, at = (parts[0], b) if b < 2 else (parts[1], b - 2)
            np.testing.assert_array_equal(infos[b]["terminal_observation"], part[4]["final_obs"][at])
            assert infos[b]["TimeLimit.truncated"] == (part[3][at] and not part[2][at])
            ended += 1
        assert all(not infos[b] for b in np.flatnonzero(~done))
    assert ended > 5


def test_vectors_of_other_spaces_or_modes_are_refused(trace: Trace) -> None:
    wider = make(trace, 1, 60_000, max_rows=8)
    with pytest.raises(UserError, match="have observations"):
        NativeVec([make(trace, 1, 60_000), wider])
    with pytest.raises(ValueError, match="resets in the step that ends"):
        NativeVec([make(trace, 1, 60_000, autoreset_mode="NextStep")])


@pytest.mark.parametrize("env", ["eviction", "placement", "joint"])
def test_fine_tuning_on_native_environments_is_determined(work: Path, env: str) -> None:  # noqa: F811
    first, again = (tune(work, f"native-{env}-{k}", env, envs=3, steps=96, rollout=16) for k in range(2))
    files = sorted(p.relative_to(first) for p in first.rglob("policy.safetensors"))
    assert len(files) == (2 if env == "joint" else 1)
    assert all((first / f).read_bytes() == (again / f).read_bytes() for f in files)
    other = tune(work, f"native-{env}-other", env, envs=3, steps=96, rollout=16, seed=1)
    assert any((first / f).read_bytes() != (other / f).read_bytes() for f in files)
