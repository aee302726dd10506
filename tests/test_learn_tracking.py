"""Tracking: what each mode writes, that offline contacts nothing, and what happens without wandb."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from saga_rl.errors import UserError
from saga_rl.learn.tracking import WandbRun


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Addresses outside this machine that this process tried to connect to; the attempt fails."""
    tried: list[object] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            tried.append(address)
            raise OSError("no network in this test")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    return tried


def test_offline_writes_curves_and_artifacts_here_only(tmp_path: Path, no_network: list[object],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR", "CONFIG_DIR", "ERROR_REPORTING"):
        monkeypatch.setenv(f"WANDB_{name}", "")  # so that what the tracker sets is taken back
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "CARD.md").write_text("# card\n")
    with WandbRun("offline", "saga-rl-test", tmp_path / "card", {"lr": 0.1}, "train") as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.summary({"best": 0.5})
        tracker.artifact("checkpoint", "toy", tmp_path / "card", {"n": 1})
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert no_network == []


def test_disabled_writes_nothing_and_needs_no_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with WandbRun("disabled", "p", tmp_path / "out", {}, "train") as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.artifact("checkpoint", "toy", tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_missing_wandb_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb disabled"):
        WandbRun("offline", "p", tmp_path, {}, "train")


def test_unknown_mode_lists_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of: offline, "):
        WandbRun("ofline", "p", tmp_path, {}, "train")
