"""`benchmarks/gpu/gain.py` without a GPU: shapes, memory, and `--dry` against a known server."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gain_stand import Stand, make, spec
from replay_server import FakeServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gain
import shapes
from gain_kit import measure, own
from gain_kit.settings import Setup

from saga_rl.aeg.io import write_trace
from saga_rl.errors import UserError
from saga_rl.sim.cost import load_profile


@pytest.mark.parametrize(("name", "parameters", "kv_bytes"), [
    ("qwen2.5-3b", 3_085_938_688, 36_864), ("qwen2.5-7b", 7_615_616_512, 57_344),
    ("llama3.1-8b", 8_030_261_248, 131_072)])
def test_shapes_are_those_of_the_models(name, parameters, kv_bytes):
    """Parameters as the published checkpoints have them; KV: layers x 2 x heads x 128 x 2 bytes."""
    shape = shapes.SHAPES[name]
    assert (shape.parameters, shape.kv_bytes) == (parameters, kv_bytes)


def test_a_model_without_weights_has_a_word_for_each_id(tmp_path):
    from tokenizers import Tokenizer

    shape = replace(shapes.SHAPES["llama3.1-8b"], vocab=5000)
    folder = shapes.write_model(shape, tmp_path / "m", 4096)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert words.get_vocab_size() == 5000 and words.id_to_token(4999) == "<4999>"
    assert not list(folder.glob("*.safetensors"))
    assert words.decode(words.encode("def main():").ids) == "def main():"


def test_servers_that_do_not_fit_on_the_card_together_are_told():
    shape = shapes.SHAPES["qwen2.5-7b"]
    one = shape.parameters * 2 / 2**30 + shapes.WORKING_GIB
    assert shapes.check_memory(shape, {"stock": 0}, 80.0) == pytest.approx(one)
    more = shapes.check_memory(shape, {"stock": 2**19, "saga+": 0}, 80.0)
    assert more == pytest.approx(2 * one + 2**19 * 57_344 / 2**30)
    with pytest.raises(UserError, match="name fewer"):
        shapes.check_memory(shape, dict.fromkeys("abcde", 0), 80.0)


def test_without_a_gpu_the_gpu_script_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        gain.main(["--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "finds no GPU" in capsys.readouterr().err


def test_the_gpu_script_dry(monkeypatch, tmp_path, capsys):
    """All of it but vLLM: sessions, calibration, measurement, tables."""
    out = tmp_path / "out"
    out.mkdir()
    for name, first in (("weka", 80_000), ("katas", 30_000)):
        write_trace(make(*(spec(f"{name}{k}", 4, first=first) for k in range(16))), out / f"{name}.parquet")

    def stand(setup: Setup, arm: str, model: Path, pool: int, *rest: Any) -> Stand:
        assert (model / "config.json").exists()
        return Stand(FakeServer(block=32, capacity=pool // 32, max_model_len=setup.model_len))

    monkeypatch.setattr(measure, "Server", stand)
    monkeypatch.setattr(own, "Server", stand)
    gain.main(["--dry", "--out", str(out)])
    told = capsys.readouterr().out
    assert "saga+" in told and "CPU, dry run" in told
    profile = load_profile(str(out / "profile.json"))
    assert profile.provenance["measured"] and profile.provenance["model"] == "tiny"
    assert (out / "result.json").exists()
