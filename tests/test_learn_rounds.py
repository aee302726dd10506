"""DAgger: rounds add the policy's own states, are judged before they are trained on, and can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_learn_learners import labelled
from test_learn_offline import script, write

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.errors import UserError
from saga_rl.learn.data.dataset import read_dataset
from saga_rl.learn.offline.dagger import own_states
from saga_rl.policies.learned.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    write_trace(generate("webarena", 5, sessions=10, rate_per_min=60.0, max_context=20_000), folder / "t.parquet")
    given: dict[str, Any] = {"behaviour": "lru", "epsilon": 0.2, "max_rows": 8, "jobs": 1, "episodes": 4,
                             "sessions": 6, "max_decisions": 100, "kv_tokens": "45000"}
    script("collect").main([folder / "t.parquet"], folder / "data-v0", **given)
    return folder


def dagger(work: Path, out: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"rounds": 2, "epochs": 2, "episodes": 1, "sessions": 6, "max_decisions": 60,
                             "validation": 0.3, "kv_tokens": "45000", "epsilon": 0.3}
    script("dagger").main(work / "data-v0", [work / "t.parquet"], out, **(given | options))
    return json.loads((out.with_name(f"{out.name}-rounds") / "rounds.json").read_text())


def test_each_round_plays_the_last_policy_and_trains_on_all(work: Path, tmp_path: Path) -> None:
    result = dagger(work, tmp_path / "p")
    folder = tmp_path / "p-rounds"
    assert [r["round"] for r in result["rounds"]] == [1, 2]
    for number in (1, 2):
        data = read_dataset(folder / f"round-{number}-v0")
        assert data.behaviours == [f"learned:policy-{number - 1}"] and len(data) == 60
        assert np.isfinite(data.next_use[data.masks]).any()
        card = load_checkpoint(folder / f"policy-{number}").card
        assert all(f"round-{n}-v0" in card for n in range(1, number + 1)) and "data-v0" in card
        row = own_states(folder / f"policy-{number - 1}", data)
        assert row.items() <= result["rounds"][number - 1].items()
    last = (folder / "policy-2" / "policy.safetensors").read_bytes()
    assert (tmp_path / "p" / "policy.safetensors").read_bytes() == last
    assert (folder / "rounds.png").read_bytes().startswith(b"\x89PNG")
    # a run that was stopped after round 1 ends at the same weights
    import shutil

    shutil.rmtree(folder / "round-2-v0")
    shutil.rmtree(folder / "policy-2")
    with pytest.raises(UserError, match="pass --resume"):
        dagger(work, tmp_path / "p")
    with pytest.raises(UserError, match="other options or data"):
        dagger(work, tmp_path / "p", resume=True, epochs=3)
    dagger(work, tmp_path / "p", resume=True)
    assert (folder / "policy-2" / "policy.safetensors").read_bytes() == last


def test_mistakes_are_named(work: Path, tmp_path: Path) -> None:
    for options, words in (({"algo": "iql"}, "does not learn from labels"), ({"rounds": 0}, "--rounds"),
                           ({"epsilon": 1.5}, "--epsilon"), ({"kv_tokens": ""}, "--pressure"),
                           ({"record": "stock"}, "saga"), ({"set_": ["x=1"]}, "no options")):
        with pytest.raises(UserError, match=words):
            dagger(work, tmp_path / "p", **options)
    placement = write(tmp_path / "place-v0", labelled(0, 4, 10), "placement")
    with pytest.raises(UserError, match="has no labels"):
        script("dagger").main(placement, [work / "t.parquet"], tmp_path / "p", kv_tokens="45000")
    assert [p.name for p in tmp_path.iterdir()] == ["place-v0"]
