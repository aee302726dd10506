"""Importer `swe-agent`: trajectories of SWE-agent (`.traj`) and mini-SWE-agent, a document a session.

- Each assistant message of the history is a call whose prompt is the history before it. mini-SWE-agent records the
  usage and time of each call; SWE-agent does not: its lengths come from the text (`--tokenizer`, else four characters
  a token).
- The tool of SWE-agent's k-th answer is the first word of the k-th action, and lasts its recorded `execution_time`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, Tool, sessions_of
from saga_rl.aeg.importers.building.text import BLOCK, Chat, Context
from saga_rl.aeg.importers.format import LIST, OBJECT, TEXT, Format, Reading
from saga_rl.aeg.importers.reading.fields import calendar, count, inner, objects, seconds
from saga_rl.aeg.importers.reading.left_out import Place


def _read(reading: Reading) -> Iterator[SessionSpec]:
    chat = Chat(reading.tokenizer)
    reading.block = BLOCK
    yield from sessions_of(reading, reading.each(lambda record, where, n: _trajectory(record, where, chat, reading)))


def _trajectory(record: dict[str, Any], where: Place, chat: Chat, reading: Reading) -> Iterator[Row]:
    session = str(record.get("instance_id") or inner(record, "info").get("instance_id")
                  or Path(where.file).name.split(".")[0])
    steps = objects(record, "trajectory", where)
    context, k = Context(), 0
    for message in objects(record, "messages" if "messages" in record else "history", where):
        said = chat.message(message)
        prompt, ids = context.length, context.blocks[:]
        context.add(said)
        if message.get("role") != "assistant":
            continue
        row = Row(session, "main", k, prompt, len(said), agent_type="swe-agent", hash_ids=ids,
                  context_ids=context.blocks[:], lengths=chat.lengths)
        usage = inner(message, "extra", "response", "usage")
        if usage:
            row.prompt, row.output = count(usage, "prompt_tokens", where), count(usage, "completion_tokens", where)
            row.cached = min(count(inner(usage, "prompt_tokens_details"), "cached_tokens", where, -1), row.prompt)
            row.lengths, row.hash_ids, row.context_ids = "recorded", array("q"), array("q")
            row.end_s = calendar(inner(message, "extra"), "timestamp", where, None)
        if k < len(steps):
            action = str(steps[k].get("action") or "").split()
            long = seconds(steps[k], "execution_time", where, default=None)
            row.tools = [Tool(Path(action[0]).name, long)] if action else ()
        k += 1
        if row.prompt and row.output:
            yield row
        else:
            reading.drop("calls_without_tokens")


FORMAT = Format("swe-agent", "trajectories of SWE-agent and mini-SWE-agent",
                ({"trajectory": LIST, "history": LIST, "info": OBJECT}, {"messages": LIST, "messages[].role": TEXT,
                                                                        "info": OBJECT, "info.model_stats": OBJECT}),
                _read, ("tokenizer",))
