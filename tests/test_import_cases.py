"""Files as people bring them (tests/data): kinds of damage, of layout and of dialect, and what is right for each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from saga_rl.aeg.importers import import_trace, imported
from saga_rl.aeg.quality import doubts, quality
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError

DATA = Path(__file__).parent / "data"
TRANSCRIPTS, TRACES = DATA / "transcripts", DATA / "traces"


def lengths(trace: Trace) -> list[tuple[int, int]]:
    return list(zip(trace.steps.prompt_tokens.tolist(), trace.steps.output_tokens.tolist(), strict=True))


@pytest.mark.parametrize(("case", "cause", "calls"), [
    ("glued", "holds more than one JSON record", [(300, 20)]),
    ("live", "is cut short: half a JSON record", [(100, 20)]),
    ("nullusage", "field 'usage' is missing in all lines of the message", [(100, 20), (300, 20)]),
])
def test_a_damaged_line_is_left_out_and_the_rest_imported(case: str, cause: str, calls: list) -> None:
    done = imported(None, TRANSCRIPTS / case)
    assert lengths(done.trace) == calls
    assert {c: n for (_, c), (n, _) in done.left.rows.items()} == {cause: 1}
    assert next(iter(done.left.rows))[0].endswith(f"{case}/s-1.jsonl")
    assert done.trace.meta.dropped == {f"damaged or foreign: {cause}": 1}
    with pytest.raises(UserError, match=f"{case}/s-1.jsonl, line") as e:
        import_trace(None, TRANSCRIPTS / case, strict=True)
    assert all(word in str(e.value) for word in cause.split(":")[0].split())


def test_content_that_is_text() -> None:
    done = imported(None, TRANSCRIPTS / "strcontent")
    assert lengths(done.trace) == [(100, 20), (100, 20)] and not done.left.count


def test_placeholder_lengths_are_estimated_and_said() -> None:
    trace = import_trace(None, TRANSCRIPTS / "placeholder")
    first, second = lengths(trace)
    line = (TRANSCRIPTS / "placeholder" / "s-1.jsonl").read_text().splitlines()[2]
    arguments = json.loads(line)["message"]["content"][0]["input"]
    assert first == (100, -(-(len("x") + len("Bash") + len(json.dumps(arguments))) // 4))
    assert second == (2003, 1), "one letter may well be one token"
    assert trace.meta.notes["mended"] == {"outputs_estimated_from_content_at_4_characters_a_token": 1}
    found = quality(trace)
    assert found is not None and found["lengths"] == {"recorded": 0.5, "estimated": 0.5, "missing": 0.0}
    assert "lengths 50 %" in doubts(trace)


def test_one_message_id_for_three_calls() -> None:
    trace = import_trace(None, TRANSCRIPTS / "sameid")
    assert lengths(trace) == [(100, 20), (300, 20), (500, 20)]
    assert trace.meta.notes["mended"] == {"message_ids_used_again_by_another_call": 2}


def claude_line(second: int, kind: str, message: dict, **more: object) -> str:
    return json.dumps({"type": kind, "sessionId": "s", "uuid": f"u{second}", "parentUuid": None,
                       "timestamp": f"2026-01-02T03:04:{second:02d}.000Z", "message": message, **more})


USAGE = {"input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 0}


def test_messages_of_other_shapes(tmp_path: Path) -> None:
    """No message id; parts under numbered keys; a spliced record and a run of NULs between good lines."""
    good = [claude_line(1, "user", {"role": "user", "content": "go"}),
            claude_line(3, "assistant", {"model": "m", "content": [{"type": "text", "text": "x"}], "usage": USAGE}),
            claude_line(7, "assistant", {"id": "n", "0": {"type": "tool_use", "id": "t", "name": "Bash", "input": {}},
                                         "1": {"type": "text", "text": "x"}, "usage": USAGE | {"input_tokens": 300}})]
    spliced = good[1][:40] + good[2]
    (tmp_path / "s.jsonl").write_bytes("\n".join([good[0], spliced, good[1], "\0" * 90, good[2], ""]).encode())
    done = imported(None, tmp_path)
    assert lengths(done.trace) == [(100, 20), (300, 20)] and done.left.count == 2
    assert done.trace.tools == ["Bash"]
    assert done.trace.meta.notes["mended"] == {"messages_whose_parts_are_numbered_keys": 1}


def test_claude_stream_json(tmp_path: Path) -> None:
    """`claude -p --output-format stream-json`: no times, sub-agents by the tool use that started them."""
    def line(kind: str, **more: object) -> str:
        return json.dumps({"type": kind, "session_id": "s", **more})

    def answer(name: str, uuid: str, parent: str | None, *content: dict) -> str:
        message = {"id": name, "model": "m", "content": list(content), "usage": USAGE | {"output_tokens": 1}}
        return line("assistant", uuid=uuid, parent_tool_use_id=parent, message=message)

    event = {"type": "message_delta", "usage": {"output_tokens": 77}}
    rows = [line("system", subtype="init"),
            line("stream_event", parent_tool_use_id=None, event={"type": "message_start", "message": {"id": "a"}}),
            line("stream_event", parent_tool_use_id=None, event=event),
            answer("a", "1", None, {"type": "tool_use", "id": "tu", "name": "Task", "input": {}}),
            answer("b", "2", "tu", {"type": "text", "text": "x"}),
            line("user", uuid="3", parent_tool_use_id=None,
                 message={"role": "user", "content": [{"type": "tool_result", "tool_use_id": "tu"}]}),
            answer("c", "4", None, {"type": "text", "text": "done"}), line("result", num_turns=2)]
    (tmp_path / "out.jsonl").write_text("\n".join(rows) + "\n")
    trace = import_trace(None, tmp_path)
    assert trace.n_sessions == 1 and trace.steps.agent.tolist() == [0, 1, 0]
    assert trace.steps.output_tokens.tolist() == [77, 1, 1], "the stream's last event has the final length"
    assert not np.isfinite(trace.steps.start_s).any() and trace.meta.notes["arrivals"].startswith("Poisson")
    found = quality(trace)
    assert found is not None and found["times"]["missing"] == 1.0 and found["tools"]["missing"] == 1.0
    assert "tools 100 %" in doubts(trace)


def nested(trace: Trace) -> tuple[float, float, float, float]:
    """(caller's end, sub-agent's first start, its last end, caller's next start)."""
    t = trace.steps
    main, sub = np.flatnonzero(t.agent == 0), np.flatnonzero(t.agent == 1)
    return t.end_s[main[0]], t.start_s[sub[0]], t.end_s[sub[-1]], t.start_s[main[1]]


@pytest.mark.parametrize("name", ["rel.jsonl", "abs.jsonl", "pretty.json"])
def test_nested_times_of_both_forms(name: str) -> None:
    """Times from the sub-agent's start or from the session's: the sub-agent lies within its caller's wait."""
    trace = import_trace(None, TRACES / name)
    end, begins, ends, goes_on = nested(trace)
    assert end <= begins <= ends <= goes_on
    assert begins - trace.sessions.arrival_s[0] == pytest.approx(3.0)
    assert trace.steps.parents.tolist() == [0, 1, 0, 2] and not trace.meta.notes["mended"]


def test_nested_times_that_fit_neither_form_are_left_out(tmp_path: Path) -> None:
    document = json.loads((TRACES / "abs.jsonl").read_text())
    document["requests"][1]["requests"][0]["t"] = 900.0
    (tmp_path / "odd.jsonl").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"sub-agents.*neither"):
        import_trace("weka", tmp_path)


def test_a_folder_of_indented_documents_with_ids_in_common(tmp_path: Path) -> None:
    """As kv-cache-tester publishes them; `hash_id_scope: global` shares ids between sessions."""
    document = json.loads((TRACES / "pretty.json").read_text())
    for scope in ("local", "global"):
        folder = tmp_path / scope
        folder.mkdir()
        for k in range(2):
            text = json.dumps(document | {"id": f"conv-{k}", "hash_id_scope": scope}, indent=2)
            (folder / f"trace_{k}.json").write_text(text)
    from saga_rl.aeg.stats import infinite_cache_hits

    apart, shared = import_trace(None, tmp_path / "local"), import_trace(None, tmp_path / "global")
    assert apart.n_sessions == shared.n_sessions == 2
    assert (apart.meta.hash_block_tokens, shared.meta.hash_block_tokens) == (0, 64)
    again = shared.session_offsets[1]
    assert infinite_cache_hits(apart)[again] == 0 and infinite_cache_hits(shared)[again] == 640
    assert infinite_cache_hits(shared)[again:].tolist() == [640, 320, 384, 704], "all of the second has been computed"


def test_blocks_of_any_size() -> None:
    assert import_trace(None, TRACES / "blk16.jsonl").meta.hash_block_tokens == 16
    given = import_trace(None, TRACES / "blk16.jsonl", hash_block_tokens=15)
    assert given.meta.hash_block_tokens == 15 and given.meta.notes["hash_block_tokens"] == "as given"
    with pytest.raises(UserError, match="--hash-block-tokens"):
        import_trace(None, TRACES / "blk16.jsonl", hash_block_tokens=512)


def test_bailian_has_seconds_and_parents() -> None:
    trace = import_trace(None, TRACES / "bailian.jsonl")
    assert trace.meta.source == "imported:bailian" and trace.n_sessions == 1
    assert trace.steps.start_s.tolist() == [0.5, 9.25] and trace.steps.prefix_tokens.tolist() == [0, 32]
    with pytest.raises(UserError, match="--format bailian"):
        import_trace("mooncake", TRACES / "bailian.jsonl")  # would be read as milliseconds


def test_rows_out_of_order_are_sorted_and_said() -> None:
    trace = import_trace(None, TRACES / "unsorted.jsonl")
    assert trace.sessions.arrival_s.tolist() == [0.005, 0.010]
    assert trace.meta.notes["mended"] == {"rows_out_of_order_sorted": 1}


def test_rows_without_ids_are_lengths_only() -> None:
    trace = import_trace(None, TRACES / "nohash.jsonl")
    assert lengths(trace) == [(600, 9)] and trace.meta.hash_block_tokens == 0
    assert trace.meta.notes["mended"] == {"requests_without_block_ids": 1}


def test_copilot_and_burst() -> None:
    assert lengths(import_trace(None, TRACES / "copilot.jsonl")) == [(100, 10)]
    burst = import_trace(None, TRACES / "burst.csv")
    assert lengths(burst) == [(40, 9)] and burst.steps.end_s[0] - burst.steps.start_s[0] == 2.0


def test_sessions_of_mooncake_rows(tmp_path: Path) -> None:
    """AIPerf's and Dynamo's rows: `session_id`, then `delay` instead of a timestamp; whole prompts or only new text."""
    rows = [{"session_id": "a", "timestamp": 1000, "input_length": 100, "output_length": 10},
            {"session_id": "b", "timestamp": 2000, "input_length": 100, "output_length": 10},
            {"session_id": "a", "delay": 500, "input_length": 30, "output_length": 10},
            {"session_id": "b", "delay": 250, "input_length": 150, "output_length": 10}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trace = import_trace(None, tmp_path)
    assert trace.sessions.session_id == ["a", "b"]
    assert lengths(trace) == [(100, 10), (140, 10), (100, 10), (150, 10)]
    assert trace.steps.prefix_tokens.tolist() == [0, 110, 0, 110]
    assert trace.steps.think_s.tolist() == [0.5, 0.0, 0.25, 0.0]
    assert trace.meta.notes["mended"] == {"sessions_whose_prompts_are_only_the_added_text": 1}


def test_a_refusal_names_the_nearest_format(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"timestamp": 1, "input_length": "many", "output_length": 9}\n')
    with pytest.raises(UserError) as e:
        import_trace(None, path)
    assert "mooncake" in str(e.value) and "field 'input_length' is 'many', not an integer" in str(e.value)
    for text in ("hello\nworld\n", "", "\0\0\0"):
        path.write_text(text)
        with pytest.raises(UserError, match="no record of JSON or CSV"):
            import_trace(None, path)


def test_files_of_two_formats_are_said_to_be_so(tmp_path: Path) -> None:
    for name in ("bailian.jsonl", "burst.csv", "rel.jsonl", "unsorted.jsonl"):
        (tmp_path / name).write_bytes((TRACES / name).read_bytes() * 3)
    with pytest.raises(UserError) as e:
        import_trace(None, tmp_path)
    assert "are read as" in str(e.value) and "import each format by itself" in str(e.value)
    assert any(f"of format '{name}'" in str(e.value) for name in ("burstgpt", "weka", "mooncake", "bailian"))


def test_fields_of_a_line_that_is_left_out_are_not_counted(tmp_path: Path) -> None:
    rows = [{"session": "s", "step": k, "in": 10, "out": 1, "colour": "red"} for k in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"session": "s", "uuid": "u", "slug": "x"}])))
    done = imported("jsonl", tmp_path)
    assert done.left.count == 1 and {k: n for k, n in done.trace.meta.dropped.items() if "field '" not in k} == {
        "field colour": 3}


def test_strict_and_lenient_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        import_trace(None, TRANSCRIPTS / "live", strict=True, lenient=True)


def test_jsonl_without_steps_and_with_iso_times(tmp_path: Path) -> None:
    rows = [{"session": "s", "in": 30, "out": 3, "t_req": "2026-01-01T00:00:09Z", "t_end": "2026-01-01T00:00:11Z"},
            {"session": "s", "in": 10, "out": 1, "t_req": "2026-01-01T00:00:01+00:00"},
            {"session": "s", "in": 20, "out": 2, "t_req": 1767225604.5}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trace = import_trace(None, tmp_path)
    assert lengths(trace) == [(10, 1), (20, 2), (30, 3)] and trace.steps.start_s.tolist() == [0.0, 3.5, 8.0]
    assert trace.steps.end_s[-1] == 10.0


def test_a_transcript_that_begins_with_many_notes(tmp_path: Path) -> None:
    notes = [json.dumps({"type": "file-history-snapshot", "messageId": str(k), "snapshot": {}}) for k in range(150)]
    good = (TRANSCRIPTS / "strcontent" / "s-1.jsonl").read_text()
    (tmp_path / "s.jsonl").write_text("\n".join(notes) + "\n" + good)
    done = imported(None, tmp_path)
    assert done.format.name == "claude-code" and done.trace.n_steps == 2
    assert done.trace.meta.dropped == {"lines of type file-history-snapshot": 150}


def test_sub_agents_beside_a_transcript_that_is_named(tmp_path: Path) -> None:
    """One file is named; the files of its sub-agents, in the folder of its name, belong to it."""
    rows = [claude_line(1, "user", {"role": "user", "content": "go"}),
            claude_line(3, "assistant", {"id": "a", "model": "m", "content": [], "usage": USAGE})]
    (tmp_path / "s.jsonl").write_text("\n".join(rows))
    below = tmp_path / "s" / "subagents"
    below.mkdir(parents=True)
    side = {"isSidechain": True, "agentId": "x"}
    (below / "agent-x.jsonl").write_text("\n".join([
        claude_line(4, "user", {"role": "user", "content": "task"}, **side),
        claude_line(6, "assistant", {"id": "b", "model": "m", "content": [], "usage": USAGE}, **side)]))
    trace = import_trace(None, tmp_path / "s.jsonl")
    assert trace.n_sessions == 1 and trace.steps.agent.tolist() == [0, 1]
