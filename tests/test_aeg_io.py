"""The trace file: decoding an encoded trace gives it back, and damaged files are refused with a message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import equal, read_trace, to_table, write_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.errors import UserError

WORDS = st.sampled_from(["a", "b", "Bash", "a name with spaces", "ü", "", "null"])
SECONDS = st.floats(0, 1e6, allow_nan=False)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Valid traces with sub-agents, shared prefixes, block ids and unknown values."""
    sessions = []
    for i in range(draw(st.integers(1, 4))):
        steps: list[StepSpec] = []
        last_of: dict[int, int] = {}
        for k in range(draw(st.integers(1, 6))):
            agent = draw(st.integers(0, 2)) if k else 0
            parents = {last_of[agent]} if agent in last_of else set()
            if k and draw(st.booleans()):
                parents.add(draw(st.integers(0, k - 1)))
            prompt, output = draw(st.integers(1, 5000)), draw(st.integers(1, 500))
            step = StepSpec(prompt, output, sorted(parents), agent, draw(st.none() | WORDS), draw(SECONDS),
                            draw(SECONDS))
            if k and draw(st.booleans()):
                step.prefix_step = draw(st.integers(0, k - 1))
                named = steps[step.prefix_step]
                step.prefix_tokens = draw(st.integers(0, min(prompt, named.prompt_tokens + named.output_tokens)))
            elif draw(st.booleans()):
                step.shared_prefix, step.prefix_tokens = draw(WORDS), draw(st.integers(0, prompt))
            blocks = -(-(prompt - step.prefix_tokens) // 512)
            step.hashes = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=blocks))
            if draw(st.booleans()):
                step.start_s = draw(SECONDS)
                step.end_s = step.start_s + draw(SECONDS)
            step.cached_tokens = draw(st.integers(-1, prompt))
            last_of[agent] = k
            steps.append(step)
        arrival = draw(SECONDS)
        deadline = draw(st.just(float("nan")) | st.floats(arrival, 2e6))
        sessions.append(SessionSpec(f"s{i}", arrival, steps, draw(WORDS), draw(WORDS), draw(WORDS), deadline))
    seed = draw(st.none() | st.integers(0, 9))
    meta = TraceMeta("n", "generated:test", seed, 512, {"lines": 2}, {"k": [1, {"x": 0.5}]})
    return build_trace(meta, sessions)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traces(), st.data())
def test_round_trip_is_lossless(tmp_path: Path, trace: Trace, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.integers(0, trace.n_sessions - 1), max_size=3))
    for t in (trace, trace.select(keep, "part")):  # a selection keeps names that it no longer uses
        write_trace(t, tmp_path / "t.parquet")
        assert equal(t, read_trace(tmp_path / "t.parquet"))


def test_equal_sees_a_difference() -> None:
    trace = generate("swe-bench", 1, sessions=3)
    other = generate("swe-bench", 2, sessions=3)
    assert equal(trace, trace) and not equal(trace, other) and not equal(trace, trace.select([0, 1]))


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_trace(generate("webarena", 5, sessions=4), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unsorted_row_groups_are_not_needed(tmp_path: Path) -> None:
    trace = generate("swe-bench", 1, sessions=5)
    pq.write_table(to_table(trace), tmp_path / "t.parquet", row_group_size=7)
    assert equal(trace, read_trace(tmp_path / "t.parquet"))


def _refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as e:
        read_trace(path)
    text = str(e.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


@pytest.fixture
def table() -> pa.Table:
    return to_table(generate("swe-bench", 1, sessions=2))


def test_files_that_are_no_trace(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "t.parquet"
    _refused(path, "no such file")
    _refused(tmp_path, "folder")
    path.write_text("session,step\n")
    _refused(path, "not a Parquet file")
    path.write_bytes(b"")
    _refused(path, "not a Parquet file")
    pq.write_table(pa.table({"x": [1]}), path)
    _refused(path, "saga_rl", "not a trace")
    pq.write_table(table, path)
    whole = path.read_bytes()
    for cut in (5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        _refused(path, "truncated")


def test_damage_inside_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_trace(generate("swe-bench", 1, sessions=20), path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 0xFF
    path.write_bytes(bytes(raw))
    _refused(path, "damaged")


def _with_head(table: pa.Table, **change: object) -> pa.Table:
    head = json.loads(table.schema.metadata[b"saga_rl"])
    head.update(change)
    return table.replace_schema_metadata({b"saga_rl": json.dumps(head).encode()})


def test_versions(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(_with_head(table, version=7), path)
    _refused(path, "7", "up to 1", "upgrade")
    for odd in (0, "1.0", None, [1]):
        pq.write_table(_with_head(table, version=odd), path)
        _refused(path, "version")
    pq.write_table(_with_head(table, format="other"), path)
    _refused(path, "other")
    pq.write_table(_with_head(table, meta={"name": "x"}), path)
    _refused(path, "source")
    pq.write_table(table.replace_schema_metadata({b"saga_rl": b"{"}), path)
    _refused(path, "JSON")


def test_columns(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(table.drop_columns(["prefix_step"]), path)
    _refused(path, "prefix_step", "missing")
    pq.write_table(table.append_column("colour", table["step"]), path)
    _refused(path, "colour", "unknown")
    for name, wrong in (("tool_s", pa.string()), ("prompt_tokens", pa.float64()), ("step", pa.int64())):
        i = table.column_names.index(name)
        pq.write_table(table.set_column(i, name, table[name].cast(wrong)), path)
        _refused(path, name, "type")
    i = table.column_names.index("output_tokens")
    holed = pa.array([None, *table["output_tokens"].to_pylist()[1:]], pa.int64())
    pq.write_table(table.set_column(i, "output_tokens", holed), path)
    _refused(path, "output_tokens", "row 0", "null")


def test_content(tmp_path: Path, table: pa.Table) -> None:
    path = tmp_path / "t.parquet"

    def changed(name: str, row: int, value: object) -> None:
        values = table[name].to_pylist()
        values[row] = value
        i = table.column_names.index(name)
        field = table.schema.field(name).type
        plain = pa.string() if pa.types.is_dictionary(field) else field
        pq.write_table(table.set_column(i, name, pa.array(values, plain)), path)

    changed("tool_s", 3, -1.0)
    _refused(path, "swe-bench-00000", "step 3", "tool_s", "-1.0")
    changed("arrival_s", 1, 1e9)
    _refused(path, "row 1", "arrival_s")
    changed("step", 2, 9)
    _refused(path, "row 2", "step")
    changed("tool", 2, "hammer")
    _refused(path, "row 2", "hammer")


def test_an_invalid_trace_leaves_no_file(tmp_path: Path) -> None:
    trace = generate("swe-bench", 1, sessions=2)
    trace.steps.tool_s[0] = np.nan
    with pytest.raises(UserError):
        write_trace(trace, tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []
