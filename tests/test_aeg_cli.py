"""The trace commands: what they write and print, and exit status 2 with one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_rl.aeg.io import read_trace
from saga_rl.cli.trace import app
from saga_rl.errors import UserError

runner = CliRunner()


def ok(*args: object) -> str:
    result = runner.invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    ok("generate", "swe-bench", "-o", tmp_path / "t.parquet", "--sessions", 12, "--seed", 3)
    return tmp_path / "t.parquet"


def test_generate_stats_validate(trace: Path, tmp_path: Path) -> None:
    assert "12 sessions" in ok("validate", trace, "--model-len", 131_072)
    out = ok("stats", trace, "--json", tmp_path / "s.json")
    assert "infinite cache hit share" in out and "prompt" in out and out.count("quality") == 1
    figures = json.loads((tmp_path / "s.json").read_text())
    assert figures["sessions"] == 12 and figures["steps"] == read_trace(trace).n_steps


def test_split_and_scale(trace: Path, tmp_path: Path) -> None:
    ok("split", trace, "-o", tmp_path / "parts", "--fractions", "train=.5,test=.5")
    parts = [read_trace(tmp_path / "parts" / f"{n}.parquet") for n in ("train", "test")]
    assert [p.n_sessions for p in parts] == [6, 6]
    ok("scale", trace, "-o", tmp_path / "s.parquet", "--factor", 0.01, "--max-context", 2000, "--time-factor", 0.5)
    small = read_trace(tmp_path / "s.parquet")
    assert small.meta.notes["length_factor"] == 0.01 and small.steps.prompt_tokens.max() < 2000


def test_import(tmp_path: Path) -> None:
    rows = [{"session": "s", "step": i, "in": 100 * (i + 1), "out": 5, "odd": 1} for i in range(3)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = ok("import", "jsonl", tmp_path / "c.jsonl", "-o", tmp_path / "t.parquet")
    assert "1 sessions, 3 steps" in out and "left out: 3 field odd" in out
    assert read_trace(tmp_path / "t.parquet").n_steps == 3


@pytest.mark.parametrize(("args", "words"), [
    (("generate", "web-arena", "-o", "OUT"), ("webarena", "choose one of")),
    (("import", "wekka", "IN", "-o", "OUT"), ("weka", "choose one of")),
    (("import", "weka", "IN", "-o", "OUT"), ("no such file",)),
    (("import", "weka", "IN", "-o", "OUT", "--tenant", "x"), ("option", "tenant")),
    (("validate", "IN"), ("no such file",)),
    (("validate", "TRACE", "--kv-tokens", "100"), ("swe-bench-00000", "step 0", "KV pool of 100")),
    (("split", "TRACE", "-o", "OUT", "--fractions", "train=.7,test"), ("--fractions", "'test'")),
    (("scale", "TRACE", "-o", "OUT", "--factor", "1", "--max-context", "900"), ("use a factor of",)),
])
def test_bad_input_writes_nothing(trace: Path, tmp_path: Path, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    places = {"OUT": str(tmp_path / "out"), "IN": str(tmp_path / "absent"), "TRACE": str(trace)}
    before = sorted(tmp_path.iterdir())
    result = runner.invoke(app, [places.get(a, a) for a in args])
    assert isinstance(result.exception, UserError), result.output
    for word in words:
        assert word in str(result.exception)
    assert sorted(tmp_path.iterdir()) == before


def test_exit_status_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from saga_rl.errors import run_user_command

    with pytest.raises(SystemExit) as e:
        run_user_command(lambda: app(["validate", str(tmp_path / "absent.parquet")], standalone_mode=False))
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "absent.parquet" in err
