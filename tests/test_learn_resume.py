"""A training run that was stopped goes on to the very same weights; its state is whole or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_learn_learners import QUICK, labelled

from saga_rl.errors import UserError
from saga_rl.learn.offline.learners import LEARNERS, learner
from saga_rl.learn.offline.learners.options import parse
from saga_rl.learn.offline.resume import fingerprint, read_state, write_state
from saga_rl.learn.offline.train import TrainConfig, train


class Killed(Exception):
    pass


def config(algo: str, **more: object) -> TrainConfig:
    own = parse(learner(algo).Options, algo, QUICK.get(algo, ()))
    return replace(TrainConfig(algo, 5, 64, 1e-2, (8,), 0.25, 7, own), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("algo", list(LEARNERS))
def test_a_killed_run_goes_on_to_the_same_weights(algo: str, tmp_path: Path) -> None:
    """Stopped after epoch 2 of 5, in a process whose random numbers have gone elsewhere since."""
    data, state = labelled(0, 12, 20), tmp_path / "run.safetensors"
    seen: list[int] = []

    def until_two(epoch: int, curves: dict[str, float]) -> None:
        seen.append(epoch)
        if epoch == 2 and len(seen) == 2:
            raise Killed

    whole = train(data, config(algo), lambda epoch, curves: None)
    with pytest.raises(Killed):
        train(data, config(algo), until_two, state)
    torch.manual_seed(99)
    rest = train(data, config(algo), until_two, state, resume=True)
    assert seen == [1, 2, 3, 4, 5]
    for (w, b), (v, c) in zip(rest.net.layers(), whole.net.layers(), strict=True):
        np.testing.assert_array_equal(w, v)
        np.testing.assert_array_equal(b, c)
    assert rest.figures == whole.figures and rest.epoch == whole.epoch
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"], "nothing half-written beside it"


def test_a_finished_state_is_only_read(tmp_path: Path) -> None:
    data, state = labelled(0, 12, 20), tmp_path / "run.safetensors"
    first = train(data, config("rank"), lambda epoch, curves: None, state)
    again = train(data, config("rank"), lambda epoch, curves: pytest.fail("trained again"), state, resume=True)
    assert all((w == v).all() for (w, _), (v, _) in zip(first.net.layers(), again.net.layers(), strict=True))


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    data, state = labelled(0, 12, 20), tmp_path / "run.safetensors"
    train(data, config("rank", epochs=1), lambda epoch, curves: None, state)
    for other, words in ((config("rank", epochs=2), r"\(epochs differ\)"), (config("listwise", epochs=1), "algo"),
                         (config("rank", epochs=1, lr=0.5, seed=8), r"lr, seed")):
        with pytest.raises(UserError, match=words):
            train(data, other, lambda epoch, curves: None, state, resume=True)
    changed = replace(data, rewards=data.rewards + 1)
    with pytest.raises(UserError, match="data differ"):
        train(changed, config("rank", epochs=1), lambda epoch, curves: None, state, resume=True)
    assert fingerprint(changed) != fingerprint(data) == fingerprint(labelled(0, 12, 20))


def test_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    tensors = {"a": torch.randn(3, 2), "n": torch.tensor(7.0), "bytes": torch.arange(5, dtype=torch.uint8)}
    write_state(path, tensors, {"x": 0.1 + 0.2, "list": [1, 2]})
    back, facts = read_state(path)
    assert all(torch.equal(back[k], t) for k, t in tensors.items()) and len(back) == 3
    assert facts["x"] == 0.1 + 0.2 and facts["list"] == [1, 2]


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no state to go on from"):
        read_state(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare")
    save_file({"a": torch.zeros(1)}, tmp_path / "later", {"state": json.dumps({"kind": "saga-rl training state",
                                                                               "version": 99})})
    whole = tmp_path / "whole"
    write_state(whole, {"a": torch.zeros(100)}, {})
    (tmp_path / "short").write_bytes(whole.read_bytes()[:200])
    for name in ("text", "bare", "later", "short"):
        with pytest.raises(UserError, match="is no state of a training run"):
            read_state(tmp_path / name)
