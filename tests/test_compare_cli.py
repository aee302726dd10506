"""`saga-rl compare` as a user meets it: files, a kill in the middle, what changed, and bad input."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from trace_kit import DOUBT, doubtful

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.cli import main as cli
from saga_rl.experiments.compare.run import KIND

RUN = [sys.executable, "-c", "from saga_rl.cli.main import main; main()", "compare"]
SMALL = ["t.parquet", "--out", "out", "--part", "eviction", "--part", "load", "--eviction", "lru,lru-protect",
         "--ordering", "session-fcfs,srpt", "--admission", "limit", "--tune", "2", "--seeds", "6", "--loads", "1",
         "--capacities", "1,1.5", "--workers", "2", "--kv-tokens", "20000", "--population", "5", "--jobs", "2"]
HELD = """
import time
from saga_rl.cli.main import main
from saga_rl.experiments.journal import Journal
add, added = Journal.add, []
def held(self, *cell):
    add(self, *cell)
    added.append(1)
    if len(added) == 5:
        time.sleep(3600)
Journal.add = held
main()
"""
"""The command, standing still after five cells, so that whoever kills it does so in the middle."""
ONE = ["t.parquet", "--out", "out", "--part", "eviction", "--eviction", "lru", "--tune", "0", "--seeds", "1",
       "--capacities", "1", "--population", "5", "--jobs", "1"]


def compare(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *arguments], cwd=folder, capture_output=True, text=True, timeout=600)


def place(folder: Path, seed: int = 5) -> Path:
    folder.mkdir()
    trace = doubtful(generate("webarena", seed, sessions=16, rate_per_min=60.0, max_context=16_000))
    write_trace(trace, folder / "t.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that ran to its end."""
    folder = place(tmp_path_factory.mktemp("whole") / "a")
    done = compare(folder, SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def lines(folder: Path) -> int:
    journal = folder / "out" / KIND.journal
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(entry.name))
            except (OSError, IndexError):
                continue
    return found


def without_commit(folder: Path, name: str) -> str:
    commit = json.loads((folder / "out" / "summary.json").read_text())["provenance"]["commit"]
    return (folder / "out" / name).read_text(encoding="utf-8").replace(commit, "COMMIT")


def test_what_it_writes(whole: Path) -> None:
    out = whole / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["kind"] == "simulated" and set(summary["provenance"]) >= {"commit", "seed", "argv", "code_sha256"}
    assert {(r["policy"], r["of_p1"]) for r in summary["eviction"]} >= {("lru", 1.0), ("lru-protect", 1.0)}
    for r in summary["eviction"]:
        assert r["recomputed_tokens"] >= r["belady_recomputed_tokens"]
        assert r["low_pressure"] or r["vs_belady"]["ratio"] >= 1
    arms = {(r["role"], r["name"]): r for r in summary["load"]}
    assert list(arms)[:2] == [("reference", "infinite memory"), ("stock", "lru")]
    assert ("ordering", "session-fcfs") in arms and ("admission", "limit") in arms
    assert arms["picked", "ordering + admission"]["policies"]["placement"] == "sticky"
    limit = next(t for t in summary["tuning"] if t["policy"] == "limit")
    assert limit["chosen"] in limit["tried"] and len(limit["tried"]) == 2
    page = (out / "index.html").read_text(encoding="utf-8")
    (facts,) = summary["traces"].values()
    assert facts["quality"]["tools"] == {"recorded": 0.75, "estimated": 0.0, "missing": 0.25} and DOUBT in page
    assert "Bélády at 1" in page and "lru-protect" in page and "http" not in page.replace("http-equiv", "")
    assert (out / "capacity.svg").read_bytes().startswith(b"<?xml") and not (out / "fairness.svg").exists()
    table = pq.read_table(out / "cells.parquet")
    assert set(table["part"].to_pylist()) == {"eviction", "load"}
    assert table.num_rows == 2 * 2 * 6 + (1 + len(arms) - 1) * 6
    assert len(set(table["key"].to_pylist())) <= table.num_rows


def test_killed_in_the_middle_it_goes_on_and_says_the_same(whole: Path, tmp_path: Path) -> None:
    folder = place(tmp_path / "a")
    process = subprocess.Popen([sys.executable, "-c", HELD, "compare", *SMALL], cwd=folder, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while lines(folder) < 5:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.05)
        mine = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)  # the program alone: its workers have to notice
        process.wait()
        until = time.monotonic() + 300
        while any(Path(f"/proc/{pid}").exists() for pid in mine) and time.monotonic() < until:
            time.sleep(0.05)
        assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()], "a worker outlived the program"
    finally:
        end_group(process.pid)
    kept = lines(folder)
    assert kept == 5 < lines(whole)
    journal = folder / "out" / KIND.journal
    before = journal.read_bytes()
    journal.write_bytes(before[:-7])  # as if the kill had come while a line was being written
    again = compare(folder, SMALL)
    assert again.returncode == 0, again.stderr
    assert "cells are there already" in again.stderr and "in the middle of a cell" in again.stderr
    after = journal.read_bytes()
    assert after.startswith(b"".join(before.splitlines(keepends=True)[:kept - 1])), "what was there is kept as it was"
    assert lines(folder) == lines(whole)
    for name in ("summary.json", "index.html", "capacity.svg", "load-mean.svg"):
        assert without_commit(folder, name) == without_commit(whole, name), name


def end_group(pid: int) -> None:
    """End whatever is left of the session that `pid` began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def test_run_again_it_computes_nothing(whole: Path) -> None:
    journal = (whole / "out" / KIND.journal).read_bytes()
    summary = (whole / "out" / "summary.json").read_bytes()
    again = compare(whole, SMALL)
    assert again.returncode == 0, again.stderr
    assert (whole / "out" / KIND.journal).read_bytes() == journal
    assert without_commit(whole, "summary.json") == summary.decode().replace(
        json.loads(summary)["provenance"]["commit"], "COMMIT")


def test_changed_trace_and_code_are_named_and_nothing_is_lost(whole: Path, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    before = {p.name: p.read_bytes() for p in (folder / "out").iterdir() if p.is_file()}
    write_trace(generate("webarena", 6, sessions=16, max_context=16_000), folder / "t.parquet")
    assert "trace 't' (" in refused(SMALL, capsys, monkeypatch)
    monkeypatch.setattr("saga_rl.experiments.compare.cells.code", lambda: "feed" * 16)
    message = refused(SMALL, capsys, monkeypatch)
    assert "the code (" in message and "feedfeedfeed now" in message and "trace 't'" in message
    assert {p.name: p.read_bytes() for p in (folder / "out").iterdir() if p.is_file()} == before
    done = compare(folder, [*ONE, "--fresh"])
    assert done.returncode == 0, done.stderr
    assert (folder / "out.old-1" / KIND.journal).read_bytes() == before[KIND.journal]
    assert lines(folder) == 2  # where to look, and the one point that was asked for


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line that is said before status 2."""
    monkeypatch.setattr(sys, "argv", ["saga-rl", "compare", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said.err
    assert said.err.count("\n") == 1 and said.err.startswith("error: ") and not said.out
    return said.err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--jobs", "0"], "--jobs: is 0"),
    (["--eviction", "lru-protct"], "choose one of: lru-protect"),
    (["--admission", "grow:factr=1"], "choose one of: factor"),
    (["--admission", "grow:factor=99"], "outside [0, 10]"),
    (["--policy", "sagga"], "choose one of: saga"),
    (["--part", "evict"], "choose one of: eviction"),
    (["--part", "eviction", "--ordering", "afs"], "means nothing to part eviction"),
    (["--eviction", "belady"], "must know the future"),
    (["--placement", "saga:steal=1", "--workers", "1"], "steals work"),
    (["--floor", "0.95"], "KV floor"),
    (["--loads", "0"], "--loads: '0' is no number above 0"),
    (["--data", "."], "give one of the two"),
    (["--out", "letters"], "holds something else"),
    (["--out", "no/where"], "cannot be made"),
])
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], message: str, whole: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(whole / "t.parquet", tmp_path / "t.parquet")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in arguments else ["--out", "out"]
    assert message in refused(["t.parquet", *out, *arguments], capsys, monkeypatch)
    assert sorted(tmp_path.rglob("*")) == before


def test_traces_that_cannot_be_used_are_named(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(whole / "t.parquet", tmp_path / "t.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:5000])
    monkeypatch.chdir(tmp_path)
    assert "no such file" in refused(["absent.parquet", "--out", "out"], capsys, monkeypatch)
    assert "truncated or damaged" in refused(["cut.parquet", "--out", "out", "--jobs", "1"], capsys, monkeypatch)
    small = refused(["t.parquet", "--out", "out", "--jobs", "1", "--capacities", "1,3000"], capsys, monkeypatch)
    assert "session 'webarena-" in small and "more than the KV pool of 3000" in small
    alone = refused(["t.parquet", "--out", "out", "--jobs", "1", "--part", "fairness"], capsys, monkeypatch)
    assert "no trace with several tenants" in alone
    assert not (tmp_path / "out").exists()
