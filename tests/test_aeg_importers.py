"""One battery that every importer passes, on small files written here; what each format means; and the real traces."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_rl.aeg.importers import import_trace, importer_names
from saga_rl.aeg.io import equal, read_trace, write_trace
from saga_rl.aeg.stats import infinite_cache_hits, stats
from saga_rl.aeg.trace import Trace
from saga_rl.aeg.validate import check
from saga_rl.errors import UserError

Rows = list[dict[str, Any]]


def weka_rows() -> Rows:
    def request(t: float, tokens: int, out: int, ids: list[int], stop: str, input_types: list[str]) -> dict:
        return {"t": t, "type": "n", "model": "m", "in": tokens, "out": out, "hash_ids": ids, "stop": stop,
                "input_types": input_types, "output_types": [], "api_time": 2.0, "think_time": 0.0}

    inner = [request(0.0, 130, 5, [90, 91], "tool_use", ["text"]),
             request(4.0, 200, 6, [90, 91, 92], "end_turn", ["tool_result"])]
    requests: list[dict] = [
        request(0.0, 128, 10, [1, 2], "tool_use", ["text"]),
        {"t": 9.0, "type": "subagent", "agent_id": "a", "duration_ms": 6000, "status": "completed", "requests": inner},
        request(10.0, 200, 10, [1, 2, 3], "tool_use", ["tool_result"]),
        request(15.0, 300, 0, [1, 2, 7, 8], "end_turn", ["tool_result"]),
        request(60.0, 330, 9, [1, 2, 7, 8, 9], "end_turn", ["text"]),
    ]
    return [{"id": "one", "block_size": 64, "requests": requests},
            {"id": "two", "block_size": 64, "requests": [requests[0]]},
            {"id": "none", "block_size": 64, "requests": []}]


def mooncake_rows() -> Rows:
    return [{"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]},
            {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 9, 10]},
            {"timestamp": 9000, "input_length": 2000, "output_length": 5, "hash_ids": [0, 1, 5, 6]},
            {"timestamp": 9500, "input_length": 1600, "output_length": 5, "hash_ids": [0, 1, 8, 7]}]


def jsonl_rows() -> Rows:
    def call(agent: str, step: int, at: float, tokens: int, tools: Rows, gap: float | None = None, **more: Any) -> dict:
        return {"session": "s", "agent": agent, "step": step, "in": tokens, "out": 10, "cached": 40, "tools": tools,
                "t_req": at, "t_end": at + 1.0, "gap": gap, "tenant": "acme", "model": "m", **more}

    spawn = {"name": "Agent", "t0": 103.0, "dur": 7.0, "spawned": "sub"}
    return [call("main", 0, 100.0, 100, [{"name": "Bash", "t0": 101.0, "dur": 0.5}, {"name": "Read", "dur": 0.1}], 1.0),
            call("main", 1, 102.0, 150, [spawn], 7.5, colour="red"),
            call("sub", 0, 103.0, 90, [{"name": "Grep", "dur": 2.0}], 2.0),
            call("sub", 1, 106.0, 120, []), call("main", 2, 110.5, 50, [], 30.0), call("main", 3, 141.5, 80, []),
            call("main", 0, 90.0, 100, []) | {"session": "other", "cached": 0}]


def katas_rows() -> Rows:
    known = {"cfg": "c", "trigger": "tool", "stop": "end_turn", "task": "mars", "tenant": "tdd"}
    rows = [r | known for r in jsonl_rows()]
    return [r | {"agent_type": "red"} if r["agent"] == "sub" else r for r in rows]


def claude_rows() -> Rows:
    def line(kind: str, second: int, message: dict, **more: Any) -> dict:
        at = f"2026-01-01T00:00:{second:02d}.000Z"
        return {"type": kind, "sessionId": "abc", "timestamp": at, "message": message,
                "isSidechain": False, "uuid": f"u{second}", "parentUuid": f"u{second - 1}", **more}

    def usage(fresh: int, read: int, out: int) -> dict:
        return {"input_tokens": fresh, "cache_read_input_tokens": read, "cache_creation_input_tokens": 5,
                "output_tokens": out}

    use = {"type": "tool_use", "id": "t1", "name": "Bash"}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "ok"}
    return [{"type": "summary", "summary": "not a call"},
            line("user", 0, {"role": "user", "content": "do it"}),
            line("assistant", 2, {"id": "m1", "model": "x", "content": [{"type": "text"}], "usage": usage(95, 0, 1)}),
            line("assistant", 3, {"id": "m1", "model": "x", "content": [use], "usage": usage(95, 0, 20)}),
            line("user", 7, {"role": "user", "content": [result]}),
            line("assistant", 9, {"id": "m2", "model": "x", "content": [], "usage": usage(25, 100, 8)})]


def _lines(name: str, rows: Callable[[], Rows]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows()))
        return folder / name

    return write


@dataclass
class Format:
    """A format, a writer of a small file, and how many sessions and steps it holds."""

    name: str
    write: Callable[[Path], Path]
    sessions: int
    steps: int
    required: str


FORMATS = [Format("weka", _lines("traces.jsonl", weka_rows), 2, 7, "requests"),
           Format("mooncake", _lines("m.jsonl", mooncake_rows), 3, 4, "hash_ids"),
           Format("jsonl", _lines("calls.jsonl", jsonl_rows), 2, 7, "session"),
           Format("katas", _lines("calls.jsonl", katas_rows), 2, 7, "task"),
           Format("claude-code", _lines("transcript.jsonl", claude_rows), 1, 2, "sessionId")]
each = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)


def test_every_format_is_in_the_battery() -> None:
    assert sorted(f.name for f in FORMATS) == importer_names()


@each
def test_battery(fmt: Format, tmp_path: Path) -> None:
    path = fmt.write(tmp_path)
    trace = import_trace(fmt.name, path)
    check(trace)
    assert (trace.n_sessions, trace.n_steps) == (fmt.sessions, fmt.steps)
    assert equal(trace, import_trace(fmt.name, path)), "two imports differ"
    write_trace(trace, tmp_path / "t.parquet")
    assert equal(trace, read_trace(tmp_path / "t.parquet"))
    zipped = tmp_path / (path.name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert equal(trace, import_trace(fmt.name, zipped))
    relaid = import_trace(fmt.name, path, rate_per_min=5.0, seed=3)
    check(relaid)
    assert relaid.sessions.arrival_s[0] > 0


@each
def test_bad_input(fmt: Format, tmp_path: Path) -> None:
    path = fmt.write(tmp_path)
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)

    def refused(*words: str, **options: Any) -> None:
        with pytest.raises(UserError) as e:
            import_trace(fmt.name, path, **options)
        assert all(w in str(e.value) for w in words), str(e.value)

    refused("rate_per_min", rate_per_min=-1.0)
    refused("option", "speed", speed=2)
    path.write_bytes(lines[0] + b"{broken\n")
    refused(str(path), "line 2", "JSON")
    path.write_bytes(b"[1, 2]\n")
    refused("line 1", "not a JSON object")
    path.write_bytes(gzip.compress(good)[:-20])
    refused(str(path), "gzip")
    path.write_bytes(b"\n")
    refused(str(path), "no LLM call")
    last = json.loads(lines[1 if fmt.name == "weka" else -1])
    for value in (None, 5):
        path.write_text(json.dumps(last | {fmt.required: value}))
        refused("line 1", fmt.required)
    path.unlink()
    refused("no such file")


def test_unknown_format() -> None:
    with pytest.raises(UserError, match="choose one of: mooncake"):
        import_trace("moncake", "x")


def steps_of(trace: Trace, session: str) -> list[dict[str, Any]]:
    s = trace.sessions.session_id.index(session)
    first, last = trace.session_offsets[s], trace.session_offsets[s + 1]
    t = trace.steps
    return [{"agent": int(t.agent[i]), "parents": t.parents[t.parent_offsets[i]:t.parent_offsets[i + 1]].tolist(),
             "tool": trace.tools[t.tool[i]] if t.tool[i] >= 0 else None, "tool_s": float(t.tool_s[i]),
             "think_s": float(t.think_s[i]), "prompt": int(t.prompt_tokens[i]),
             "prefix": (int(t.prefix_step[i]), int(t.prefix_tokens[i]))}
            for i in range(first, last)]


def test_weka_meaning(tmp_path: Path) -> None:
    path = _lines("traces.jsonl", weka_rows)(tmp_path)
    (tmp_path / "fork_groups.json").write_text('{"g": ["one"], "h": ["two"]}')
    trace = import_trace("weka", path)
    assert sorted(trace.sessions.group) == ["g", "h"] and trace.meta.dropped == {"sessions_without_requests": 1}
    a, sub0, sub1, b, c, d = steps_of(trace, "one")
    assert [s["agent"] for s in (a, sub0, sub1, b, c, d)] == [0, 1, 1, 0, 0, 0]
    assert (a["tool"], a["tool_s"]) == ("Agent", 1.0)  # sent again at 10 s, the sub-agent's last call ended at 9 s
    assert sub0["parents"] == [0] and sub1["parents"] == [1] and b["parents"] == [0, 2]
    assert sub1["prefix"] == (1, 135)  # continues: both whole blocks, and room for the output
    assert b["prefix"] == (0, 138)
    assert c["prefix"] == (3, 128)  # block 3 was replaced: two whole blocks remain
    assert (c["tool"], c["think_s"]) == (None, 43.0) and b["tool"] == "tool"
    assert trace.steps.output_tokens.min() == 1 and trace.meta.notes["mended"]["outputs_raised_to_1_token"] == 1


def test_mooncake_meaning(tmp_path: Path) -> None:
    trace = import_trace("mooncake", _lines("m.jsonl", mooncake_rows)(tmp_path))
    first = steps_of(trace, "request-000000")
    assert first[1]["parents"] == [0] and first[1]["prefix"] == (0, 1024)
    assert first[0]["think_s"] == pytest.approx(9.0 - 3.0)  # less the estimated service of 50 tokens
    assert infinite_cache_hits(trace).tolist() == [0, 1024, 512, 1024]  # sessions in order of arrival


def test_jsonl_meaning(tmp_path: Path) -> None:
    trace = import_trace("jsonl", _lines("calls.jsonl", jsonl_rows)(tmp_path))
    assert trace.meta.dropped == {"field colour": 1}
    a, b, sub0, _, c, d = steps_of(trace, "s")
    assert (a["tool"], a["tool_s"], a["think_s"]) == ("Bash", 0.5, 0.5)
    assert b["tool"] == "Agent" and b["tool_s"] == pytest.approx(3.5)  # next request at 110.5, sub-agent done at 107
    assert sub0["parents"] == [1] and c["parents"] == [1, 3]
    assert a["prefix"] == (-1, 40) and b["prefix"] == (0, 110)
    assert c["prefix"] == (-1, 40) and trace.meta.notes["mended"]["contexts_compacted"] == 1
    assert c["think_s"] == 30.0 and d["think_s"] == 0.0
    assert steps_of(trace, "other")[0]["prefix"] == (-1, 40)  # cold, but the same text as the other's first call
    assert trace.sessions.session_id == ["other", "s"] and trace.sessions.arrival_s.tolist() == [0.0, 10.0]


def test_katas_meaning(tmp_path: Path) -> None:
    trace = import_trace("katas", _lines("calls.jsonl", katas_rows)(tmp_path))
    assert trace.agent_types == ["claude-code"] and set(trace.sessions.group) == {"mars/tdd"}
    assert sorted(trace.shared_prefixes) == ["tdd/claude-code/m", "tdd/claude-code/red/m"], "a first text each kind"
    assert trace.meta.dropped == {"field cfg": 7, "field colour": 1, "field stop": 7, "field trigger": 7}
    plain = import_trace("jsonl", _lines("plain.jsonl", katas_rows)(tmp_path))
    assert [steps_of(trace, s) for s in ("s", "other")] == [steps_of(plain, s) for s in ("s", "other")]


def test_katas_limit_ends_the_reading(tmp_path: Path) -> None:
    path = _lines("calls.jsonl", katas_rows)(tmp_path)
    with path.open("a") as f:
        f.write("this line is never read\n")
    assert import_trace("katas", path, limit=1).sessions.session_id == ["s"]
    with pytest.raises(UserError, match="line 8"):
        import_trace("katas", path, limit=2)
    rows = katas_rows()
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0] | {"step": 9}])))
    with pytest.raises(UserError, match="after another session"):
        import_trace("katas", path)


@pytest.mark.parametrize(("change", "word"), [
    ({"in": "many"}, "'in'"), ({"in": True}, "'in'"), ({"out": -3}, "'out'"), ({"t_req": -1.0}, "'t_req'"),
    ({"t_end": 1.0}, "'t_end'"),
    ({"tools": [{"dur": 1.0}]}, "'name'"), ({"hash_ids": [1.5]}, "'hash_ids'"),
    ({"hash_ids": [1] * 99}, "hash-block-tokens"),
])
def test_jsonl_is_strict(tmp_path: Path, change: dict, word: str) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(jsonl_rows()[0] | change))
    with pytest.raises(UserError, match=word):
        import_trace("jsonl", path)
    rows = jsonl_rows()
    path.write_text("\n".join(json.dumps(r) for r in (rows[0], rows[0])))
    with pytest.raises(UserError, match="second time"):
        import_trace("jsonl", path)


def test_claude_code_meaning(tmp_path: Path) -> None:
    rows = claude_rows()
    side = [r | {"isSidechain": True, "agentId": "s1", "timestamp": r["timestamp"].replace(":00:0", ":00:1")}
            for r in rows[1:3]]
    side[1] = side[1] | {"message": side[1]["message"] | {"id": "m9"}}
    (tmp_path / "abc.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    below = tmp_path / "abc" / "subagents"
    below.mkdir(parents=True)
    (below / "agent-s1.jsonl").write_text("".join(json.dumps(r) + "\n" for r in side))
    copied = [r | {"sessionId": "fork"} for r in rows[1:]]
    copied.append(copied[-1] | {"message": rows[-1]["message"] | {"id": "m7"}})
    (tmp_path / "fork.jsonl").write_text("".join(json.dumps(r) + "\n" for r in copied))
    trace = import_trace("claude-code", tmp_path)
    a, b, sub = steps_of(trace, "abc")
    assert (a["prompt"], a["tool"], a["tool_s"]) == (100, "Bash", 4.0)
    assert trace.steps.output_tokens[0] == 20, "the last line's usage counts"
    assert b["prefix"] == (0, 120) and sub["agent"] == 1 and sub["parents"] == [1]
    assert len(steps_of(trace, "fork")) == 1 and set(trace.sessions.group) == {"abc"}
    assert trace.meta.dropped["lines_copied_from_another_file"] == 3
    assert trace.meta.dropped["lines of type summary"] == 1


def test_real_weka(shared_data: Path) -> None:
    trace = import_trace("weka", shared_data / "weka_claude_code" / "traces.jsonl.gz", limit=60)
    assert trace.n_sessions == 60
    prompts = trace.steps.prompt_tokens
    assert trace.steps.prefix_tokens.sum() / prompts.sum() > 0.8, "Claude Code's contexts grow, they are not rewritten"
    assert (trace.steps.agent > 0).any() and (np.diff(trace.steps.parent_offsets) > 1).any()


@pytest.mark.parametrize(("name", "share"), [("conversation", 0.37), ("synthetic", 0.64)])
def test_real_mooncake_hit_share(shared_data: Path, name: str, share: float) -> None:
    """The blocks that an infinite cache would hold, from the imported structure alone: path of ids from the root."""
    trace = import_trace("mooncake", shared_data / "mooncake" / f"{name}_trace.jsonl.gz")
    t = trace.steps
    paths: list[tuple[int, ...]] = []
    for i in range(trace.n_steps):
        named = int(t.prefix_step[i])
        above = paths[trace.session_offsets[t.session[i]] + named][:t.prefix_tokens[i] // 512] if named >= 0 else ()
        paths.append(above + tuple(t.hashes[t.hash_offsets[i]:t.hash_offsets[i + 1]].tolist()))
    seen: set[tuple[int, int]] = set()
    hit = 0
    for i in np.argsort(t.start_s, kind="stable"):
        keyed = list(enumerate(paths[i]))
        hit += next((k for k, key in enumerate(keyed) if key not in seen), len(keyed))
        seen.update(keyed)
    figures = stats(trace)
    assert figures["infinite_cache_block_hit_share"] == pytest.approx(hit / sum(map(len, paths)), abs=1e-4)
    assert figures["infinite_cache_block_hit_share"] == pytest.approx(share, abs=0.005), "as the authors count"
    assert figures["infinite_cache_hit_share"] == pytest.approx(share, abs=0.015), "in tokens rather than blocks"


def test_real_claude_code(shared_data: Path) -> None:
    trace = import_trace("claude-code", shared_data / "claude_code_katas" / "transcripts")
    assert trace.n_sessions == 4 and trace.n_steps == 286
    assert (np.diff(trace.steps.parent_offsets) > 1).sum() >= 10, "main agents wait for their sub-agents"
    assert trace.steps.cached_tokens.min() >= 0


def test_real_flat_rows(shared_data: Path) -> None:
    tau = import_trace("jsonl", shared_data / "tau_bench_airline" / "steps.jsonl.gz")
    assert (tau.n_sessions, tau.n_steps, len(set(tau.sessions.group))) == (200, 2454, 50)
    first = np.flatnonzero(tau.steps.prefix_step < 0)
    hits = infinite_cache_hits(tau)[first]
    assert (hits[1:] > 1000).all(), "sessions share the policy text by their block ids"


def test_real_katas(shared_data: Path) -> None:
    trace = import_trace("katas", shared_data / "claude_code_katas" / "calls.jsonl.gz", limit=60)
    assert trace.n_sessions == 60 and {"Bash", "Read", "Agent"} <= set(trace.tools)
    assert len(set(trace.sessions.group)) < 60, "runs of one task and workflow repeat each other"
    assert any("/claude-code/red/" in text for text in trace.shared_prefixes)
    t = trace.steps
    assert (t.agent > 0).any() and (np.diff(t.parent_offsets) > 1).any(), "main agents wait for their sub-agents"
    bash = t.tool_s[t.tool == trace.tools.index("Bash")]
    assert 0.3 < np.median(bash) < 1.5
    assert (t.cached_tokens > 0).any() and np.isfinite(t.end_s).all()
