"""Importing from the command line: what is printed and written, what an interruption leaves, the memory it takes."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from importers_kit import SAMPLES
from typer.testing import CliRunner

from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.io import read_trace
from saga_rl.aeg.quality import quality, sentence
from saga_rl.cli.simulate import register as register_simulate
from saga_rl.cli.trace import app
from saga_rl.errors import UserError

runner = CliRunner()
BY_NAME = {s.name: s for s in SAMPLES}
DATA = Path(__file__).parent / "data"


def ok(*args: object) -> str:
    result = runner.invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_import_by_content_says_what_it_did(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    said = ok("import", DATA / "transcripts" / "glued", DATA / "transcripts" / "placeholder", "-o", out)
    assert "format: claude-code (found by content)" in said and "1 outputs estimated from content" in said
    assert "quality: lengths 67 % recorded, 33 % estimated; times recorded" in said
    assert "more than one" in said and "first line" in said
    trace = read_trace(out)
    assert trace.n_sessions == 1 and trace.n_steps == 3, "both transcripts are of session s-1"
    stats = ok("stats", out, "--json", tmp_path / "s.json")
    assert "quality" in stats and "33 %" in stats
    assert json.loads((tmp_path / "s.json").read_text())["quality"]["lengths"]["recorded"] == pytest.approx(2 / 3)


def test_files_of_a_folder_stand_whole_in_the_table(tmp_path: Path) -> None:
    """In a terminal of 80 columns, however deep the folder lies."""
    live = (DATA / "transcripts" / "live" / "s-1.jsonl").read_text()
    deep = tmp_path / ("deep" * 20)
    names = [f"a-rather-long-name-of-a-session-{k}.jsonl" for k in range(3)]
    for k, name in enumerate(names):
        (deep / str(k)).mkdir(parents=True)
        (deep / str(k) / name).write_text(live.replace('"s-1"', f'"s-{k}"'))
    said = ok("import", deep, "-o", tmp_path / "t.parquet")
    cells = "".join("".join(line.split("│")[1].split()) for line in said.splitlines() if line.startswith("│"))
    assert cells == "".join(f"{k}/{name}" for k, name in enumerate(names))


def test_format_as_an_option_or_first(tmp_path: Path) -> None:
    path = BY_NAME["mooncake"].write(tmp_path)
    for words in (("mooncake", path), (path, "--format", "mooncake")):
        assert "format: mooncake\n" in ok("import", *words, "-o", tmp_path / "t.parquet")


@pytest.mark.parametrize("more", [("--strict",), ("--format", "weka")])
def test_a_refusal_writes_nothing(tmp_path: Path, more: tuple[str, ...]) -> None:
    result = runner.invoke(app, ["import", str(DATA / "transcripts" / "live"), "-o", str(tmp_path / "t"), *more])
    assert isinstance(result.exception, UserError) and not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    path = BY_NAME["jsonl"].write(tmp_path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_trace(None, path, progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]


WRITE = """
import resource, signal, sys
from saga_rl.errors import run_user_command
from saga_rl.cli.trace import app
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
else:
    import pyarrow.parquet as pq
    def write(table, where, **options):
        open(where, "w").write("half")
        print("writing", flush=True)
        signal.pause()
    pq.write_table = write
run_user_command(lambda: sys.exit(app(["import", sys.argv[2], "-o", sys.argv[3]], standalone_mode=False)))
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the write fails in the middle."""
    path = BY_NAME["jsonl"].write(tmp_path)
    done = subprocess.run([sys.executable, "-c", WRITE, "full", path, tmp_path / "t.parquet"], capture_output=True,
                          text=True)
    assert done.returncode == 2 and done.stderr.strip().startswith("error: ") and done.stderr.count("error") == 1
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_writing_leaves_nothing(tmp_path: Path, number: int) -> None:
    path = BY_NAME["jsonl"].write(tmp_path)
    (tmp_path / "t.parquet").write_text("of before")
    with subprocess.Popen([sys.executable, "-c", WRITE, "signal", path, tmp_path / "t.parquet"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          # or a shell's background job, which ignores Ctrl-C, would hand that down
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        assert process.stdout is not None and "writing" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(60) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "t.parquet"]
    assert (tmp_path / "t.parquet").read_text() == "of before"


def test_memory_grows_by_less_than_4_gib_a_million_calls() -> None:
    """By the measured peak of processes that import 10,000 and 30,000 calls."""
    spec = importlib.util.spec_from_file_location("import_memory", Path(__file__).parents[1] / "benchmarks"
                                                  / "import_memory.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for fmt in script.ROWS:
        few, many = script.peak_bytes(fmt, 10_000), script.peak_bytes(fmt, 30_000)
        assert few + (many - few) * (990 / 20) < 4 * 2**30, (fmt, few, many)


def test_simulate_says_what_completion_times_rest_on(tmp_path: Path) -> None:
    import typer

    program = typer.Typer()
    program.callback()(lambda: None)
    register_simulate(program)
    ok("import", BY_NAME["chats"].write(tmp_path), "-o", tmp_path / "t.parquet")
    result = runner.invoke(program, ["simulate", str(tmp_path / "t.parquet"), "--json", str(tmp_path / "r.json")],
                           catch_exceptions=False)
    assert result.exit_code == 0 and "completion times rest on values that were not recorded" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["trace_quality"]["tools"]["missing"] == 1.0


def test_quality_of_other_traces(tmp_path: Path) -> None:
    ok("generate", "swe-bench", "--sessions", 2, "-o", tmp_path / "g.parquet")
    generated = read_trace(tmp_path / "g.parquet")
    assert quality(generated) is None and sentence(generated) == "all of it generated"
    ok("import", BY_NAME["chats"].write(tmp_path), "-o", tmp_path / "t.parquet")
    ok("scale", tmp_path / "t.parquet", "-o", tmp_path / "s.parquet", "--factor", 2)
    scaled = read_trace(tmp_path / "s.parquet")
    assert "lengths estimated" in sentence(scaled) and "lengths scaled by 2" in sentence(scaled)


def test_the_converter_of_the_docs(tmp_path: Path) -> None:
    """docs/examples/convert_gateway_log.py: about twenty lines, and what it writes can be imported."""
    script = Path(__file__).parents[1] / "docs" / "examples" / "convert_gateway_log.py"
    assert len(script.read_text().splitlines()) <= 24
    (tmp_path / "gateway.csv").write_text(
        "time,seconds,run,agent,tool,prompt,answer\n2026-01-01T10:00:09,1.5,r,,,300,20\n"
        "2026-01-01T10:00:00,2,r,,search,100,10\n2026-01-01T10:00:03,1,r,helper,,80,5\n")
    with (tmp_path / "gateway.csv").open() as log:
        lines = subprocess.run([sys.executable, script], stdin=log, capture_output=True, text=True, check=True)
    (tmp_path / "calls.jsonl").write_text(lines.stdout)
    trace = import_trace(None, tmp_path / "calls.jsonl")
    assert trace.steps.prompt_tokens.tolist() == [100, 80, 300] and trace.steps.agent.tolist() == [0, 1, 0]
    assert trace.tools == ["search"] and trace.steps.end_s.tolist() == [2.0, 4.0, 10.5]


def test_every_format_has_its_row_in_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "import-formats.md").read_text()
    for name in BY_NAME:
        assert sum(line.startswith(f"| `{name}` |") for line in page.splitlines()) == 1, name
