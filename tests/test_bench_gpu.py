"""`benchmarks/gpu/gain.py` without a GPU: shapes, memory, and the command line that it gives to `saga-rl bench`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"))

import gain
import shapes

from saga_rl.errors import UserError


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


def test_a_pool_that_the_card_does_not_hold_is_told():
    shape = shapes.SHAPES["qwen2.5-7b"]
    one = shape.parameters * 2 / 2**30 + shapes.WORKING_GIB
    assert shapes.check_memory(shape, 0, 80.0) == pytest.approx(one)
    assert shapes.check_memory(shape, 2**19, 80.0) == pytest.approx(one + 2**19 * 57_344 / 2**30)
    with pytest.raises(UserError, match="give fewer"):
        shapes.check_memory(shape, 2**21, 80.0)


def test_without_a_gpu_the_gpu_script_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        gain.main(["t.parquet", "--out", str(tmp_path / "out"), "--concurrency", "4"])
    assert stop.value.code == 2 and "finds no GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_gpu_script_is_a_bench_with_a_model_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(gain, "card", lambda: ("H200", 139.0))
    monkeypatch.setattr(shapes, "SHAPES", {"small": replace(shapes.SHAPES["llama3.1-8b"], vocab=5000)})
    out = tmp_path / "out"
    told = gain.words(["a.parquet", "b.parquet", "--shape", "small", "--out", str(out), "--window", "8192",
                       "--concurrency", "4", "--drop-long"])
    assert told[:3] == ["bench", "a.parquet", "b.parquet"]
    given = dict(zip(told[3::2], told[4::2], strict=False))
    assert given["--model"] == str(out / "small") and given["--arms"] == "stock,likely,infinite"
    assert given["--engines"] == "1" and given["--concurrency"] == "4" and "--drop-long" in told
    assert json.loads((out / "small" / "config.json").read_text())["num_hidden_layers"] == 32
    assert told[told.index("--load-format") + 1] == "dummy" and "--gpu-memory-utilization" in told
