"""What every experiment stands on: cells, the journal and its folder, the runner, each kind of interval."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from saga_rl.errors import UserError
from saga_rl.experiments import journal
from saga_rl.experiments.bench.record import KIND as BENCH
from saga_rl.experiments.cell import Cell, Result, make_cell
from saga_rl.experiments.compare.run import KIND as COMPARE
from saga_rl.experiments.intervals import (
    F64,
    bootstrap,
    geometric,
    mean,
    nested_ratio,
    p95,
    paired_ratio,
    ratio_of_means,
)
from saga_rl.experiments.journal import HEAD, Head, Journal, Kind, check_same, move_aside, opened, state_of
from saga_rl.experiments.progress import Shown
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import timed
from saga_rl.learn.judge.protocol.lab import KIND as PROTOCOL

KINDS = pytest.mark.parametrize("kind", [COMPARE, BENCH, PROTOCOL], ids=lambda kind: kind.noun)


def cell(n: int) -> Cell:
    """A cell that each kind can file."""
    return Cell({"arm": "stock", "repeat": n}, f"{n}/stock")


def result(n: int) -> Result:
    """A result of it, as the bench gives it: the line itself."""
    return {"kind": "run", "arm": "stock", "repeat": n, "x": n / 3, "none": None, "real_s": 0.5}


def fill(out: Path, kind: Kind, head: Head = Head(), cells: Sequence[int] = range(3)) -> None:
    out.mkdir(exist_ok=True)
    with opened(out, kind, head) as made:
        for n in cells:
            made.add(cell(n), result(n), 0.5)


# ---------------------------------------------------------------------- cells
def test_keys_name_everything_that_a_cell_depends_on() -> None:
    spec = {"kind": "closed", "seed": 1, "config": {"workers": 2}}
    key = make_cell(spec, "code", ["a"], 1.0).key
    assert key == make_cell(dict(reversed(spec.items())), "code", ["a"], 9.0).key
    others = (make_cell(spec | {"seed": 2}, "code", ["a"]), make_cell(spec, "other", ["a"]),
              make_cell(spec, "code", ["b"]))
    assert len({key, *(other.key for other in others)}) == 4


def test_seconds_are_shared_and_a_mistake_names_its_cell() -> None:
    found = timed("here", lambda: [{"x": 1}, {"x": 2}])
    assert [r for r, _ in found] == [{"x": 1}, {"x": 2}] and found[0][1] == found[1][1] >= 0

    def wrong() -> list[Result]:
        raise UserError("trace", "is none", "name one")

    with pytest.raises(UserError, match="cell 7: trace: is none; name one"):
        timed("cell 7", wrong)


# ---------------------------------------------------------------------- the journal
@KINDS
def test_a_cut_line_is_taken_off_and_the_rest_is_kept(kind: Kind, tmp_path: Path) -> None:
    fill(tmp_path, kind, cells=range(2))
    path = tmp_path / kind.journal
    whole = path.read_bytes()
    for cut in (1, 10, len(whole.splitlines()[1])):
        path.write_bytes(whole[:-cut])
        assert Journal(tmp_path, kind).cut and path.read_bytes() == whole[:-cut], "who only reads writes nothing"
        with opened(tmp_path, kind, Head()) as again:
            assert again.results == {"0/stock": result(0)} and again.seconds == {"0/stock": 0.5}
            assert "in the middle of a cell" in again.troubles()[0]
            again.add(cell(1), result(1), 0.5)
        assert path.read_bytes() == whole
    with opened(tmp_path, kind, Head()) as again:
        assert not again.cut and not again.troubles() and set(again.results) == {"0/stock", "1/stock"}


@KINDS
def test_a_damaged_line_is_left_out_counted_and_said(kind: Kind, tmp_path: Path) -> None:
    fill(tmp_path, kind)
    path = tmp_path / kind.journal
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:9] + b"\n" + lines[2])
    with opened(tmp_path, kind, Head()) as again:
        assert set(again.results) == {"0/stock", "2/stock"} and (again.damaged, again.cut) == (1, False)
        assert "1 damaged line left out" in again.troubles()[0]
    path.write_bytes(lines[0] + b'{"a": "line of something else"}\n[1, 2]\n\xff\xfe\n' + lines[2])
    assert Journal(tmp_path, kind).damaged == 3 and len(Journal(tmp_path, kind).results) == 2


def test_notes_are_no_cells(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    with opened(tmp_path, BENCH, Head()) as made:
        made.note({"kind": "start", "commit": "abc"})
    assert Journal(tmp_path, BENCH).notes == [{"kind": "start", "commit": "abc"}]
    assert not Journal(tmp_path, BENCH).results


def test_no_line_holds_what_is_no_number(tmp_path: Path) -> None:
    with opened(tmp_path, COMPARE, Head()) as made, pytest.raises(ValueError):
        made.add(cell(0), {"x": float("nan")}, 0.5)
    assert not (tmp_path / COMPARE.journal).exists()


# ---------------------------------------------------------------------- the folder
@KINDS
def test_one_at_a_time(kind: Kind, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, kind)
    with opened(out, kind, Head()):
        with pytest.raises(UserError, match=f"in use by another {kind.noun}"), opened(out, kind, Head()):
            pass
        with pytest.raises(UserError, match="in use"):
            move_aside(out, kind)


def test_what_changed_is_named_in_one_line(tmp_path: Path) -> None:
    was = {"t": {"identity": {"sha256": "1" * 64, "name": "t"}, "facts": 1}, "gone": {"identity": {"sha256": "2" * 64}}}
    fill(tmp_path, COMPARE, Head("c0de" * 16, {"seed": 1, "window": (1, 2)}, was))

    def check(code: str = "c0de" * 16, what: dict[str, Any] | None = None, **inputs: Any) -> Head:
        return check_same(tmp_path, COMPARE, Head(code, what or {"seed": 1, "window": (1, 2)}, {
            name: {"identity": identity} for name, identity in inputs.items()}))

    assert check(t=was["t"]["identity"], new={"sha256": "9" * 64}).inputs == was
    for message, ask in (
            (r"changed since: the code \(c0dec0dec0de then, feedfeedfeed now\); give --fresh", {"code": "feed" * 16}),
            ("seed was 1, is 2; ", {"what": {"seed": 2, "window": (1, 2)}}),
            ("more was None, is 3; ", {"what": {"seed": 1, "window": (1, 2), "more": 3}}),
            (r"trace 't' \(111111111111 then, 333333333333 now\).*--fresh", {"t": {"sha256": "3" * 64, "name": "t"}}),
            (r"trace 't' \(its source or options\)", {"t": {"sha256": "1" * 64, "name": "u"}})):
        with pytest.raises(UserError, match=message) as e:
            check(**ask)
        assert "\n" not in str(e.value)


@KINDS
def test_folders_of_others_are_left_alone(kind: Kind, tmp_path: Path) -> None:
    assert state_of(tmp_path / "new", kind) == "new" and state_of(tmp_path, kind) == "new"
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=f"holds something else than a {kind.noun}"):
        state_of(tmp_path, kind)
    with pytest.raises(UserError, match="is no folder"):
        state_of(tmp_path / "letter.txt", kind)
    with pytest.raises(UserError, match="cannot be made"):
        state_of(tmp_path / "a" / "b", kind)
    other = next(k for k in (COMPARE, BENCH) if k is not kind)
    fill(tmp_path / "other", other)
    with pytest.raises(UserError, match=f"holds '{other.name}' of format 1, not '{kind.name}'"):
        state_of(tmp_path / "other", kind)
    fill(tmp_path / "mine", kind)
    assert state_of(tmp_path / "mine", kind) == "ours"
    head = json.loads((tmp_path / "mine" / HEAD).read_text())
    (tmp_path / "mine" / HEAD).write_text(json.dumps(head | {"format": 9}))
    with pytest.raises(UserError, match="of format 9, not"):
        state_of(tmp_path / "mine", kind)


def test_move_aside_never_overwrites(tmp_path: Path) -> None:
    for n in (1, 2):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "n").write_text(str(n))
        assert move_aside(tmp_path / "out", COMPARE).name == f"out.old-{n}"
    assert (tmp_path / "out.old-1" / "n").read_text() == "1"


def test_a_bench_of_the_earlier_format_goes_on(tmp_path: Path) -> None:
    """Its journal began with what is measured, and each run of a checkpoint held its digest."""
    rows = [{"kind": "bench", "what": {"seed": 1}}, {"kind": "start", "commit": "abc"}, result(0),
            result(1) | {"arm": "mine", "weights": "1" * 64}]
    path = tmp_path / BENCH.journal
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = path.read_bytes()
    assert state_of(tmp_path, BENCH) == "ours"
    mine = {"mine": {"identity": {"sha256": "1" * 64}}}
    assert check_same(tmp_path, BENCH, Head(what={"seed": 1}, inputs=mine)).inputs == mine
    with pytest.raises(UserError, match="seed was 1, is 2"):
        check_same(tmp_path, BENCH, Head(what={"seed": 2}))
    with pytest.raises(UserError, match=r"checkpoint 'mine' \(111111111111 then, 222222222222 now\)"):
        check_same(tmp_path, BENCH, Head(what={"seed": 1}, inputs={"mine": {"identity": {"sha256": "2" * 64}}}))
    with opened(tmp_path, BENCH, Head(what={"seed": 1}, inputs=mine)) as again:
        assert set(again.results) == {"0/stock", "1/mine"} and again.damaged == 0
        again.add(cell(2), result(2), 0.5)
    assert path.read_bytes().startswith(before) and state_of(tmp_path, BENCH) == "ours"
    path.write_text("no json\n")
    (tmp_path / HEAD).unlink()
    with pytest.raises(UserError, match="holds something else than a bench"):
        state_of(tmp_path, BENCH)


# ---------------------------------------------------------------------- the runner
class Counted:
    """A backend that gives what it is asked for, and fails after `most`."""

    def __init__(self, most: int = 99) -> None:
        self.most, self.closed = most, 0
        self.ran: list[str] = []

    def run(self, cells: Sequence[Cell], shown: Shown) -> Generator[tuple[Cell, Result, float], None, None]:
        try:
            for c in reversed(cells):
                if len(self.ran) == self.most:
                    raise KeyboardInterrupt
                self.ran.append(c.key)
                shown.finish(c.key)
                yield c, result(c.spec["repeat"]), 0.5
        finally:
            self.closed += 1


def test_what_is_there_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, COMPARE, cells=[1])
    backend, wanted = Counted(), {("arm", n): cell(n) for n in range(4)}
    with opened(tmp_path, COMPARE, Head()) as made:
        runner = Runner(made, backend, Console(force_terminal=False))
        found = runner.run("testing", {**wanted, "again": cell(2)})
        assert sorted(backend.ran) == ["0/stock", "2/stock", "3/stock"] and backend.closed == 1
        assert found == {**{("arm", n): result(n) for n in range(4)}, "again": result(2)}
        assert list(found) == [*wanted, "again"]
        runner.run("testing", wanted)
        assert len(backend.ran) == 3
    said = capsys.readouterr().out
    assert "testing: 1 of 4 cells are there already" in said and "testing: 3 cells run" in said
    assert "[2/4] 3/stock" in said


def test_what_was_run_before_an_interruption_is_kept(tmp_path: Path) -> None:
    wanted = {n: cell(n) for n in range(4)}
    console = Console(force_terminal=False, quiet=True)
    with opened(tmp_path, COMPARE, Head()) as made:
        backend = Counted(2)
        with pytest.raises(KeyboardInterrupt):
            Runner(made, backend, console).run("testing", wanted)
        assert backend.closed == 1
    with opened(tmp_path, COMPARE, Head()) as made:
        rest = Counted()
        assert Runner(made, rest, console).run("testing", wanted) == {n: result(n) for n in range(4)}
    assert not set(backend.ran) & set(rest.ran) and len(backend.ran) == len(rest.ran) == 2


def test_a_journal_that_cannot_be_written_ends_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, *cell: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(journal.Journal, "add", full)
    with opened(tmp_path, COMPARE, Head()) as made, pytest.raises(OSError, match="no space"):
        backend = Counted()
        Runner(made, backend, Console(quiet=True)).run("testing", {0: cell(0), 1: cell(1)})
    assert backend.closed == 1 and len(backend.ran) == 1


# ---------------------------------------------------------------------- intervals
def test_a_geometric_mean_and_a_paired_ratio_are_one_interval() -> None:
    rng = np.random.default_rng(3)
    theirs = rng.lognormal(size=6)
    ours = theirs * rng.lognormal(-0.2, 0.05, 6)
    found = paired_ratio(ours, theirs)
    assert found is not None and found["verdict"] == "better"
    assert geometric(np.log(ours / theirs)) == (found["ratio"], found["low"], found["high"])
    low, high = bootstrap(np.log(ours / theirs))
    assert (found["low"], found["high"]) == pytest.approx((np.exp(low), np.exp(high)))


def test_a_ratio_of_means_holds_what_it_is_of() -> None:
    whole = np.array([1.0, 2.0, 3.0, 4.0])
    assert ratio_of_means(0.5 * whole, whole) == pytest.approx((0.5, 0.5, 0.5))
    value, low, high = ratio_of_means(np.array([0.5, 1.5, 1.0, 2.5]), whole)
    assert low < value < high and value == pytest.approx(5.5 / 10)


def test_a_ratio_is_of_pairs_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(1)
    base = [rng.lognormal(size=40) * (1 + r) for r in range(5)]
    for statistic in (mean, p95):
        half = nested_ratio([(b / 2, b) for b in base], statistic)
        assert (half["mean"], half["low"], half["high"]) == pytest.approx((0.5, 0.5, 0.5))  # pairs: no noise is left
    noisy = nested_ratio([(b * rng.lognormal(-0.3, 0.2, 40), b) for b in base], mean)
    assert noisy["low"] < noisy["mean"] < noisy["high"] < 1.0  # type: ignore[operator]
    pairs: list[tuple[F64, F64]] = [(np.array([3.0]), np.array([2.0])), (np.array([1.0]), np.array([2.0]))]
    assert nested_ratio(pairs, mean) == {"mean": 1.0, "low": 0.5, "high": 1.5}
    assert nested_ratio([(np.ones(1), np.zeros(1))], mean)["mean"] is None
    assert nested_ratio([(np.array([3.0]), np.array([2.0]))], mean) == {"mean": 1.5, "low": None, "high": None}
