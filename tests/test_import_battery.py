"""One battery that every import format passes, on the made-up file in importers_kit.py."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from importers_kit import SAMPLES, Sample

from saga_rl.aeg.importers import import_trace, imported, importer_names
from saga_rl.aeg.io import equal, read_trace, write_trace
from saga_rl.aeg.quality import KEY, PARTS, quality, sentence
from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check
from saga_rl.cli.trace import FORMATS
from saga_rl.errors import UserError

each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
by_line = pytest.mark.parametrize("sample", [s for s in SAMPLES if s.layout == "lines"], ids=lambda s: s.name)
GLUED, HALF, NUL = b'{"a": 1}{"b": 2}\n', b'{"type": "user", "mess', b"\0\0\0\0\n"


def same(a: Trace, b: Trace) -> bool:
    """Equal but for what the notes say was left out."""
    return equal(a, replace(b, meta=replace(b.meta, dropped=a.meta.dropped, name=a.meta.name)))


def test_every_format_is_in_the_battery() -> None:
    assert sorted(s.name for s in SAMPLES) == importer_names()


@each
def test_recognised_and_nothing_lost(sample: Sample, tmp_path: Path) -> None:
    done = imported(None, sample.write(tmp_path))
    trace = done.trace
    check(trace)
    assert done.format.name == sample.name and done.left.count == 0
    assert (trace.n_sessions, trace.n_steps) == (sample.sessions, sample.calls)
    assert int(trace.steps.prompt_tokens.sum()) == sample.prompt
    assert int(trace.steps.output_tokens.sum()) == sample.output
    assert int((trace.steps.agent > 0).sum()) == sample.subagents
    assert trace.meta.notes["mended"] == sample.assumed and trace.meta.dropped == sample.dropped


@each
def test_time_goes_forward(sample: Sample, tmp_path: Path) -> None:
    """Sessions arrive in order, and no call is sent before the call that it follows, or its caller, was sent."""
    trace = import_trace(sample.name, sample.write(tmp_path))
    t, off = trace.steps, trace.session_offsets
    assert (np.diff(trace.sessions.arrival_s) >= 0).all()
    child = np.repeat(np.arange(trace.n_steps), np.diff(t.parent_offsets))
    parent = off[t.session[child]] + t.parents
    assert (parent < child).all()
    known = np.isfinite(t.start_s[child]) & np.isfinite(t.start_s[parent])
    assert (t.start_s[child][known] >= t.start_s[parent][known]).all()


@each
def test_quality_counts_every_call(sample: Sample, tmp_path: Path) -> None:
    trace = import_trace(sample.name, sample.write(tmp_path))
    counts = trace.meta.notes[KEY]
    assert list(counts) == list(PARTS)
    for part in ("lengths", "times", "ends"):
        assert sum(counts[part].values()) == trace.n_steps, part
    followed = trace.n_steps - len(set(zip(trace.steps.session.tolist(), trace.steps.agent.tolist(), strict=True)))
    assert sum(counts["tools"].values()) == followed
    recorded = np.isfinite(trace.steps.end_s).sum()
    assert counts["ends"]["recorded"] == recorded
    assert quality(trace) is not None and "lengths" in sentence(trace)


@each
def test_same_trace_from_any_packing(sample: Sample, tmp_path: Path) -> None:
    path = sample.write(tmp_path)
    trace = import_trace(sample.name, path)
    assert equal(trace, import_trace(sample.name, path)), "two imports differ"
    write_trace(trace, tmp_path / "t.parquet")
    assert equal(trace, read_trace(tmp_path / "t.parquet"))
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert same(trace, import_trace(None, packed / f"{path.name}.gz")), "gzip"
    assert same(trace, import_trace(None, packed)), "a folder"
    (packed / f"{path.name}.gz").unlink()
    with pa.CompressedOutputStream(str(packed / f"{path.name}.zst"), "zstd") as f:
        f.write(path.read_bytes())
    assert same(trace, import_trace(None, str(packed / "*.zst"))), "Zstandard, by a pattern"
    relaid = import_trace(sample.name, path, rate_per_min=5.0, seed=3)
    check(relaid)
    assert relaid.sessions.arrival_s[0] > 0 and relaid.meta.notes["arrivals"].startswith("Poisson")


@each
def test_other_layouts_of_json(sample: Sample, tmp_path: Path) -> None:
    """The same records as an indented array, and as indented documents after each other."""
    if sample.layout == "csv":
        return
    trace = import_trace(sample.name, sample.write(tmp_path))
    rows = sample.records()
    for name, text in (("array", json.dumps(rows, indent=1)), ("line", json.dumps(rows)),
                       ("documents", "\n".join(json.dumps(r, indent=2) for r in rows))):
        path = tmp_path / name / f"{sample.name}.json"
        path.parent.mkdir()
        path.write_text(text)
        assert same(trace, import_trace(None, path)), name


@by_line
def test_damaged_lines_are_left_out_and_counted(sample: Sample, tmp_path: Path) -> None:
    path = sample.write(tmp_path)
    trace = import_trace(sample.name, path)
    path.write_bytes(path.read_bytes() + GLUED + NUL + HALF)
    done = imported(sample.name, path)
    assert same(trace, done.trace) and done.left.count == 3
    causes = {cause for _, cause in done.left.rows}
    assert causes == {"holds more than one JSON record", "holds NUL bytes", "is cut short: half a JSON record"}
    assert all(file == str(path) for file, _ in done.left.rows)
    with pytest.raises(UserError) as e:
        import_trace(sample.name, path, strict=True)
    assert f"line {len(path.read_bytes().splitlines()) - 2}" in str(e.value) and "--strict" in str(e.value)
    path.write_bytes(path.read_bytes() + b"\n" + GLUED * 9)
    with pytest.raises(UserError, match="--lenient"):
        import_trace(sample.name, path)
    assert same(trace, import_trace(sample.name, path, lenient=True))


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.required], ids=lambda s: s.name)
def test_a_foreign_record_is_left_out(sample: Sample, tmp_path: Path) -> None:
    """One record whose required field has another shape; alone, the refusal names file, line and field."""
    for value in (None, 5.5):
        rows = sample.records()
        rows.append(rows[-1] | {sample.required: value})
        done = imported(sample.name, sample.write(tmp_path, rows))
        assert done.left.count == 1 and sample.required in next(iter(done.left.rows))[1]
        with pytest.raises(UserError) as e:
            import_trace(sample.name, sample.write(tmp_path, rows[-1:]))
        assert "line 1" in str(e.value) and sample.required in str(e.value) and "no LLM call" in str(e.value)


@each
def test_a_wrong_format_names_the_right_one(sample: Sample, tmp_path: Path) -> None:
    path = sample.write(tmp_path)
    for wrong in importer_names():
        if wrong == sample.name or (sample.name, wrong) in (("katas", "jsonl"), ("vllm-multi-turn", "chats")):
            continue  # two formats are special cases of another
        with pytest.raises(UserError) as e:
            import_trace(wrong, path)
        assert f"--format {sample.name}" in str(e.value) and "field" in str(e.value), wrong


def test_the_command_names_all_formats() -> None:
    assert FORMATS.split(", ") == importer_names()


@each
def test_bad_options_and_files(sample: Sample, tmp_path: Path) -> None:
    path = sample.write(tmp_path)

    def refused(*words: str, **options: object) -> None:
        with pytest.raises(UserError) as e:
            import_trace(sample.name, path, **options)
        assert all(w in str(e.value) for w in words), str(e.value)

    refused("rate_per_min", rate_per_min=-1.0)
    refused("limit", limit=0)
    refused("option", "speed", speed=2)
    path.write_bytes(gzip.compress(path.read_bytes())[:-20])
    refused(str(path), "gzip")
    path.write_bytes(b"\n")
    refused(str(path), "no LLM call")
    path.unlink()
    refused("no such file")


VALUES: list[Any] = [None, True, -1, 5.5, 1e300, 10**30, "", "2026-13-45", [], [None], {}, {"a": 1}, "\ud800"]


def _paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(inner, (*at, key))


@each
def test_any_damage_ends_in_a_trace_or_one_line(sample: Sample, tmp_path: Path) -> None:
    """Fields of another shape at random places, and bytes overturned: a valid file, or a `UserError` of one line."""
    rng = random.Random(sample.name)
    for k in range(40):
        rows = sample.records()
        place = rng.choice([p for p in _paths(rows) if len(p) > 1])
        holder: Any = rows
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = rng.choice(VALUES if sample.layout != "csv" else VALUES[:-1])
        path = sample.write(tmp_path, rows)
        if k % 4 == 0:
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(bytes(data))
        try:
            write_trace(import_trace(sample.name, path, lenient=k % 2 == 0), tmp_path / "t.parquet")
        except UserError as e:
            assert "\n" not in str(e)
        else:
            assert read_trace(tmp_path / "t.parquet").n_steps
