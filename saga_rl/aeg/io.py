"""Traces on disk: one Parquet file, one row a step. The columns are described in docs/reference/trace-format.md.

The table is plain enough for any Parquet reader; what a table cannot hold (meta, vocabularies and their order) is JSON
in the schema metadata under the key `saga_rl`. Decoding an encoded trace gives it back exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saga_rl.aeg.trace import FORMAT, VERSION, Sessions, Steps, Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError
from saga_rl.files import atomic, must_exist

KEY = b"saga_rl"
_WORD = pa.dictionary(pa.int32(), pa.string())
_SESSION = {"session_id": _WORD, "group": _WORD, "tenant": _WORD, "agent_type": _WORD,
            "arrival_s": pa.float64(), "deadline_s": pa.float64()}
_PLAIN = {"agent": pa.int32(), "tool_s": pa.float64(), "think_s": pa.float64(), "prompt_tokens": pa.int64(),
          "output_tokens": pa.int64(), "prefix_step": pa.int32(), "prefix_tokens": pa.int64(), "start_s": pa.float64(),
          "first_token_s": pa.float64(), "end_s": pa.float64(), "cached_tokens": pa.int64()}
_LISTS = {"parents": pa.list_(pa.int32()), "hashes": pa.list_(pa.int64())}
COLUMNS: dict[str, pa.DataType] = {**_SESSION, "step": pa.int32(), "tool": _WORD, "shared_prefix": _WORD, **_PLAIN,
                                   **_LISTS}
_NULLABLE = ("tool", "shared_prefix")
_VOCABULARIES = ("tenants", "agent_types", "tools", "shared_prefixes")
_HEAD = "schema metadata 'saga_rl'"
_AGAIN = "write the trace again"
_CONVERT = "read it with `saga-rl trace import PATH` if it is another format"


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write `trace` whole or not at all. An invalid trace raises `UserError` and leaves no file."""
    check(trace)
    table = to_table(trace)
    with atomic(path) as tmp:
        pq.write_table(table, tmp, compression="zstd", write_page_checksum=True, row_group_size=1 << 17)


def read_trace(path: str | Path) -> Trace:
    """The valid trace in the file `path`.

    Raises `UserError` for a file that is missing, not Parquet, cut short or damaged, not ours, of a later version, with
    missing, unknown or wrongly typed columns, or whose content `saga_rl.aeg.validate.check` refuses.
    """
    path = must_exist(path)
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as e:
        with path.open("rb") as f:
            ours = f.read(4) == b"PAR1"
        if ours:
            raise UserError(path, "is a truncated or damaged Parquet file", "write or copy it again") from e
        raise UserError(path, "is not a Parquet file", _CONVERT) from e
    try:
        trace = from_table(table)
        check(trace)
    except UserError as e:
        raise UserError(path, f"{e.where} {e.cause}", e.mend) from None
    return trace


def equal(a: Trace, b: Trace) -> bool:
    """Whether two traces are the same in every column, name and note (NaN equals NaN)."""
    def columns(t: Trace) -> dict[str, Any]:
        return {**vars(t.sessions), **vars(t.steps), "session_offsets": t.session_offsets}

    x, y = columns(a), columns(b)
    same_columns = all(
        x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k], equal_nan=x[k].dtype.kind == "f")
        if isinstance(x[k], np.ndarray) else x[k] == y[k] for k in x)
    return same_columns and a.meta == b.meta and all(getattr(a, k) == getattr(b, k) for k in _VOCABULARIES)


def to_table(trace: Trace) -> pa.Table:
    """The trace as an Arrow table with our metadata; the trace has to be valid."""
    s, t = trace.sessions, trace.steps
    rows = t.session

    def words(codes: NDArray, names: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=codes < 0), pa.array(names, pa.string()))

    groups = list(dict.fromkeys(s.group))
    code_of = {g: i for i, g in enumerate(groups)}
    group_code = np.array([code_of[g] for g in s.group], np.int32)
    columns: dict[str, pa.Array] = {
        "session_id": words(rows, s.session_id),
        "group": words(group_code[rows], groups),
        "tenant": words(s.tenant[rows], trace.tenants),
        "agent_type": words(s.agent_type[rows], trace.agent_types),
        "arrival_s": pa.array(s.arrival_s[rows]),
        "deadline_s": pa.array(s.deadline_s[rows]),
        "step": pa.array((np.arange(trace.n_steps) - trace.session_offsets[rows]).astype(np.int32)),
        "tool": words(t.tool, trace.tools),
        "shared_prefix": words(t.shared_prefix, trace.shared_prefixes),
        **{k: pa.array(getattr(t, k), dtype) for k, dtype in _PLAIN.items()},
        "parents": pa.ListArray.from_arrays(pa.array(t.parent_offsets, pa.int32()), pa.array(t.parents, pa.int32())),
        "hashes": pa.ListArray.from_arrays(pa.array(t.hash_offsets, pa.int32()), pa.array(t.hashes, pa.int64())),
    }
    head = {"format": FORMAT, "version": VERSION, "meta": asdict(trace.meta),
            "vocabularies": {k: getattr(trace, k) for k in _VOCABULARIES}}
    try:
        text = json.dumps(head, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise UserError("meta.notes", f"does not fit JSON ({e})", "keep numbers, strings and lists in it") from None
    schema = pa.schema([(k, COLUMNS[k]) for k in COLUMNS], metadata={KEY: text.encode()})
    return pa.table([columns[k] for k in COLUMNS], schema=schema)


def from_table(table: pa.Table) -> Trace:
    """The trace in an Arrow table written by `to_table`, any version up to ours. Does not `check` it."""
    raw = (table.schema.metadata or {}).get(KEY)
    if raw is None:
        raise UserError("schema metadata", "has no key 'saga_rl', so this Parquet file is not a trace", _CONVERT)
    try:
        head = json.loads(raw)
        kind, version = head["format"], head["version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(_HEAD, "is not the JSON object it should be", _AGAIN) from None
    if kind != FORMAT:
        raise UserError(f"{_HEAD}, format", f"is {kind!r}, not {FORMAT!r}", _CONVERT)
    if type(version) is int and version > VERSION:
        raise UserError(f"{_HEAD}, version", f"is {version}, and this saga-rl reads up to {VERSION}",
                        "upgrade saga-rl")
    if type(version) is not int or version not in _DECODERS:
        raise UserError(f"{_HEAD}, version", f"is {version!r}, which never existed", _AGAIN)
    return _DECODERS[version](table, head)


def _decode_v1(table: pa.Table, head: dict[str, Any]) -> Trace:
    missing = [k for k in COLUMNS if k not in table.column_names]
    if missing:
        raise UserError(f"column {missing[0]}", "is missing",
                        "write the file with saga-rl, see docs/reference/trace-format.md")
    unknown = [k for k in table.column_names if k not in COLUMNS]
    if unknown:
        raise UserError(f"column {unknown[0]}", "is unknown", "remove it; notes belong into the metadata")
    if len(set(table.column_names)) != len(table.column_names):
        raise UserError("columns", "hold a name twice", _AGAIN)
    for name, want in COLUMNS.items():
        _check_type(table, name, want)
    meta, vocabularies = _read_head(head)
    cols: dict[str, NDArray] = {k: table[k].to_numpy() for k in (*_PLAIN, "arrival_s", "deadline_s", "step")}

    starts = np.flatnonzero(cols["step"] == 0)
    offsets = np.concatenate([starts, [table.num_rows]]).astype(np.int64)
    if table.num_rows and (not len(starts) or starts[0] != 0):
        raise UserError("row 0, column step", f"is {cols['step'][0]}", "begin each session with step 0")
    session = np.repeat(np.arange(len(starts), dtype=np.int32), np.diff(offsets))
    own = np.arange(table.num_rows) - offsets[:-1][session] if len(starts) else cols["step"]
    _same(cols["step"], own, "step", "number the steps of a session from 0, without gaps")
    firsts = {}
    for name in ("session_id", "group"):
        values, codes = _words(table[name])
        _same(codes, codes[starts][session], name, "repeat the session's value in each of its rows")
        firsts[name] = [values[c] for c in codes[starts]]
    coded = {}
    for name, key in (("tenant", "tenants"), ("agent_type", "agent_types"), ("tool", "tools"),
                      ("shared_prefix", "shared_prefixes")):
        coded[name] = _recode(table[name], vocabularies[key], name)
    for name in ("tenant", "agent_type"):
        _same(coded[name], coded[name][starts][session], name, "repeat the session's value in each of its rows")
    for name in ("arrival_s", "deadline_s"):
        _same(cols[name], cols[name][starts][session], name, "repeat the session's value in each of its rows")
    parent_offsets, parents = _ragged(table["parents"], np.int32)
    hash_offsets, hashes = _ragged(table["hashes"], np.int64)
    steps = Steps(session=session, parent_offsets=parent_offsets, parents=parents, hash_offsets=hash_offsets,
                  hashes=hashes, tool=coded["tool"], shared_prefix=coded["shared_prefix"],
                  **{k: cols[k] for k in _PLAIN})
    sessions = Sessions(firsts["session_id"], firsts["group"], coded["tenant"][starts], coded["agent_type"][starts],
                        cols["arrival_s"][starts], cols["deadline_s"][starts])
    return Trace(meta, **vocabularies, sessions=sessions, steps=steps, session_offsets=offsets)


# A later version adds its decoder here and keeps the earlier ones.
_DECODERS: dict[int, Callable[[pa.Table, dict[str, Any]], Trace]] = {1: _decode_v1}


def _read_head(head: dict[str, Any]) -> tuple[TraceMeta, dict[str, list[str]]]:
    try:
        meta = TraceMeta(**head["meta"])
        vocabularies = {k: head["vocabularies"][k] for k in _VOCABULARIES}
    except (KeyError, TypeError) as e:
        raise UserError(_HEAD, f"is incomplete or has an unknown field ({e})",
                        _AGAIN) from None
    for k, names in vocabularies.items():
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UserError(f"{_HEAD}, {k}", "is not a list of strings", _AGAIN)
    return meta, vocabularies


def _check_type(table: pa.Table, name: str, want: pa.DataType) -> None:
    have = table.schema.field(name).type
    if pa.types.is_dictionary(want):
        plain = have.value_type if pa.types.is_dictionary(have) else have
        good = pa.types.is_string(plain) or pa.types.is_large_string(plain)
    elif pa.types.is_list(want):
        good = pa.types.is_list(have) and have.value_type == want.value_type
    else:
        good = have == want
    if not good:
        shown = "string" if pa.types.is_dictionary(want) else want
        raise UserError(f"column {name}", f"has type {have}, not {shown}", "see docs/reference/trace-format.md")
    if name not in _NULLABLE and table[name].null_count:
        row = int(np.argmax(table[name].is_null().to_numpy()))
        raise UserError(f"row {row}, column {name}", "is null", "give it a value")
    if pa.types.is_list(want):
        inner = table[name].combine_chunks()
        if pc.list_flatten(inner).null_count:
            raise UserError(f"column {name}", "holds a null inside a list", "give it a value")


def _words(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)


def _recode(column: pa.ChunkedArray, names: list[str], field: str) -> NDArray[np.int32]:
    values, codes = _words(column)
    index = {n: i for i, n in enumerate(names)}
    for i, v in enumerate(values):
        if v not in index:
            row = int(np.argmax(codes == i))
            raise UserError(f"row {row}, column {field}", f"is {v!r}, which the vocabulary in the metadata lacks",
                            _AGAIN)
    lookup = np.array([index[v] for v in values] + [-1], np.int32)
    return lookup[codes]


def _ragged(column: pa.ChunkedArray, dtype: type) -> tuple[NDArray[np.int64], NDArray]:
    lengths = pc.list_value_length(column).to_numpy()
    values = pc.list_flatten(column).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values.astype(dtype)


def _same(values: NDArray, want: NDArray, field: str, mend: str) -> None:
    equal = (values == want) | ((values != values) & (want != want))
    if not equal.all():
        row = int(np.argmax(~equal))
        raise UserError(f"row {row}, column {field}", f"is {values[row]}, not {want[row]}", mend)

