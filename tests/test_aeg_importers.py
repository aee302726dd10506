"""What the formats with a history mean, field by field, and the real traces; the battery is test_import_battery.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from importers_kit import Rows, claude_code, jsonl, katas, mooncake, weka

from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.stats import infinite_cache_hits, stats
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError


def _lines(name: str, rows: Callable[[], Rows]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows()))
        return folder / name

    return write


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
    path = _lines("traces.jsonl", weka)(tmp_path)
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
    trace = import_trace("mooncake", _lines("m.jsonl", mooncake)(tmp_path))
    first = steps_of(trace, "request-000000")
    assert first[1]["parents"] == [0] and first[1]["prefix"] == (0, 1024)
    assert first[0]["think_s"] == pytest.approx(9.0 - 3.0)  # less the estimated service of 50 tokens
    assert infinite_cache_hits(trace).tolist() == [0, 1024, 512, 1024]  # sessions in order of arrival


def test_jsonl_meaning(tmp_path: Path) -> None:
    trace = import_trace("jsonl", _lines("calls.jsonl", jsonl)(tmp_path))
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
    trace = import_trace("katas", _lines("calls.jsonl", katas)(tmp_path))
    assert trace.agent_types == ["claude-code"] and set(trace.sessions.group) == {"mars/tdd"}
    assert sorted(trace.shared_prefixes) == ["tdd/claude-code/m", "tdd/claude-code/red/m"], "a first text each kind"
    assert trace.meta.dropped == {"field cfg": 7, "field colour": 1, "field stop": 7, "field trigger": 7}
    plain = import_trace("jsonl", _lines("plain.jsonl", katas)(tmp_path))
    assert [steps_of(trace, s) for s in ("s", "other")] == [steps_of(plain, s) for s in ("s", "other")]


def test_katas_limit_ends_the_reading(tmp_path: Path) -> None:
    path = _lines("calls.jsonl", katas)(tmp_path)
    with path.open("a") as f:
        f.write("this line is never read\n")
    assert import_trace("katas", path, limit=1).sessions.session_id == ["s"]
    with pytest.raises(UserError, match="line 8"):
        import_trace("katas", path, limit=3, strict=True)
    rows = katas()
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0] | {"step": 9}])))
    with pytest.raises(UserError, match="after another session"):
        import_trace("katas", path, strict=True)


@pytest.mark.parametrize(("change", "word"), [
    ({"in": "many"}, "'in'"), ({"in": True}, "'in'"), ({"out": -3}, "'out'"), ({"t_req": -1.0}, "'t_req'"),
    ({"t_end": 1.0}, "'t_end'"),
    ({"tools": [{"dur": 1.0}]}, "'name'"), ({"hash_ids": [1.5]}, "'hash_ids'"),
    ({"hash_ids": [1] * 99}, "hash-block-tokens"),
])
def test_jsonl_is_strict(tmp_path: Path, change: dict, word: str) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(jsonl()[0] | change))
    with pytest.raises(UserError, match=word):
        import_trace("jsonl", path)
    with pytest.raises(UserError, match=f"line 1.*{word}"):
        import_trace("jsonl", path, strict=True)
    rows = jsonl()
    path.write_text("\n".join(json.dumps(r) for r in (rows[0], rows[0])))
    with pytest.raises(UserError, match="second time"):
        import_trace("jsonl", path, strict=True)
    assert import_trace("jsonl", path).n_steps == 1


def test_claude_code_meaning(tmp_path: Path) -> None:
    rows = claude_code()
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
