"""Importer `otel-genai`: OpenTelemetry spans with GenAI attributes: OTLP JSON (`resourceSpans`), or flat lists of
spans.

- A span is a call, a tool or an agent by `gen_ai.operation.name`; others only nest. `building/spans.py` finds agents.
- The session is `gen_ai.conversation.id`, else another session attribute, else the trace.
- Lengths are `gen_ai.usage.*`. Where they are missing and messages are there, lengths and block ids come from the text
  (`--tokenizer`, else four characters a token), and are counted as estimated.
- Calls of one agent that overlap are taken for those of sub-agents. The first token's time is not recorded.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, sessions_of
from saga_rl.aeg.importers.building.spans import Span, rows_of
from saga_rl.aeg.importers.building.text import BLOCK, Chat
from saga_rl.aeg.importers.format import LIST, OBJECT, Format, Reading
from saga_rl.aeg.importers.reading.fields import calendar, count, inner, objects
from saga_rl.aeg.importers.reading.left_out import Place
from saga_rl.errors import UserError

CALLS = ("chat", "text_completion", "generate_content", "completion")
SESSIONS = ("gen_ai.conversation.id", "session.id", "exgentic.session.id", "langfuse.session.id")
INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens")
OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens")
STARTS, ENDS = ("startTimeUnixNano", "start_time", "startTime"), ("endTimeUnixNano", "end_time", "endTime")
CACHED = ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens", "gen_ai.usage.cached_tokens")


def _read(reading: Reading) -> Iterator[SessionSpec]:
    chat = Chat(reading.tokenizer)
    yield from sessions_of(reading, rows_of(_spans(reading, chat), reading), split_overlaps=True)


def _spans(reading: Reading, chat: Chat) -> Iterator[Span]:
    for where, record in reading.records():
        for raw, resource in _raw(record, where, reading):
            span = None
            with reading.left.guard(where):
                span = _span(raw, resource, where, chat, reading)
            if span:
                yield span


def _raw(record: dict[str, Any], where: Place, reading: Reading) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(span, attributes of its resource) of a document, a batch, or a span."""
    with reading.left.guard(where):
        if "resourceSpans" in record:
            for block in objects(record, "resourceSpans", where):
                resource = _attributes(inner(block, "resource").get("attributes"))
                for scope in objects(block, "scopeSpans", where):
                    yield from ((s, resource) for s in objects(scope, "spans", where))
        elif "spans" in record:
            yield from ((s, inner(s, "resource_attributes")) for s in objects(record, "spans", where))
        else:
            yield record, inner(record, "resource_attributes")


def _attributes(given: Any) -> dict[str, Any]:
    """Attributes as a mapping: OTLP's list of keys and typed values, or a mapping already."""
    if isinstance(given, dict):
        return given
    out = {}
    for item in given if isinstance(given, list) else []:
        value = item.get("value") if isinstance(item, dict) else None
        if isinstance(value, dict) and len(value) == 1:
            (kind, v), = value.items()
            out[str(item.get("key"))] = int(v) if kind == "intValue" and str(v).lstrip("-").isdigit() else v
    return out


def _span(raw: dict[str, Any], resource: dict[str, Any], where: Place, chat: Chat, reading: Reading) -> Span:
    a = _attributes(raw.get("attributes"))
    start = calendar(raw, next((k for k in STARTS if k in raw), "start_time"), where)
    end = calendar(raw, next((k for k in ENDS if k in raw), "end_time"), where, None)
    operation = str(a.get("gen_ai.operation.name") or "")
    kind = ("call" if operation in CALLS or (not operation and any(k in a for k in INPUT)) else
            "tool" if operation == "execute_tool" or "gen_ai.tool.name" in a else
            "agent" if operation in ("invoke_agent", "create_agent") else "other")
    span = Span(str(a.get("gen_ai.tool.name") or raw.get("name") or "tool"), kind,
                _id(raw, "spanId", "span_id"), _id(raw, "parentSpanId", "parent_span_id"),
                _id(raw, "traceId", "trace_id"), start, end,
                next((str(a[k]) for k in SESSIONS if a.get(k)), ""))
    if kind == "call":
        span.row = _row(a, resource, start, end, where, chat, reading)
        if span.row is None:
            span.kind = "other"
    return span


def _id(raw: dict[str, Any], *names: str) -> str:
    return next((str(raw[k]) for k in names if raw.get(k)), "")


def _row(a: dict[str, Any], resource: dict[str, Any], start: float, end: float | None, where: Place, chat: Chat,
         reading: Reading) -> Row | None:
    def usage(names: tuple[str, ...]) -> int:
        return next((count(a, k, where) for k in names if a.get(k) is not None), -1)

    prompt, output, ids, whole = usage(INPUT), usage(OUTPUT), array("q"), array("q")
    guessed = prompt < 0 or output < 0
    if guessed:
        context = chat.context(_messages(a.get("gen_ai.input.messages")))
        answer = _messages(a.get("gen_ai.output.messages")) or [str(a.get("gen_ai.output.text") or "")]
        ids, length = context.blocks[:], context.length
        for message in answer:
            context.add(chat.message(message))
        prompt, output, whole = length, context.length - length, context.blocks
        if prompt == 0 or output == 0:
            raise UserError(f"{where}, attributes 'gen_ai.usage.*'", "are missing, and so are the messages",
                            "record one of the two")
        reading.block = BLOCK
        reading.assume("calls_with_lengths_from_text")
    if prompt == 0 or output == 0:
        reading.drop("calls_without_tokens")
        return None
    kind = a.get("gen_ai.agent.name") or resource.get("service.name") or a.get("agent.name") or "agent"
    return Row("", "main", 0, prompt, output, min(usage(CACHED), prompt), (), start, None, end, agent_type=str(kind),
               model=str(a.get("gen_ai.response.model") or a.get("gen_ai.request.model") or ""), hash_ids=ids,
               context_ids=whole, lengths=chat.lengths if guessed else "recorded")


def _messages(given: Any) -> list[dict[str, Any] | str]:
    """Messages of an attribute, which is often JSON in text."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return [given]
    return [m for m in given if isinstance(m, dict | str)] if isinstance(given, list) else []


FORMAT = Format("otel-genai", "OpenTelemetry spans with GenAI attributes",
                ({"resourceSpans": LIST, "resourceSpans[].scopeSpans": LIST},
                 {"spans": LIST, "spans[].attributes": OBJECT}),
                _read, ("tokenizer",))
