"""Importer `chats`: plain conversations with their text: `messages` (OpenAI's form) or `conversations` (ShareGPT's),
one a record. Needs no lengths: they come from the text (`--tokenizer`, else four characters a token).

Each answer is a call whose prompt is all that was said before. Block ids are of the text, so what conversations share
is exact; no chat template is applied. Times are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from saga_rl.aeg.build import SessionSpec
from saga_rl.aeg.importers.building.flat import Row, sessions_of
from saga_rl.aeg.importers.building.text import BLOCK, Chat, Context
from saga_rl.aeg.importers.format import ANY, LIST, Format, Reading
from saga_rl.aeg.importers.reading.fields import objects
from saga_rl.aeg.importers.reading.left_out import Place

ANSWERS = ("assistant", "gpt", "chatgpt", "model", "bot")


def read_chats(reading: Reading) -> Iterator[SessionSpec]:
    """Sessions of conversations, one a record."""
    reading.block = BLOCK
    chat = Chat(reading.tokenizer)
    yield from sessions_of(reading, reading.each(
        lambda record, where, n: rows_of_chat(record, f"{record.get('id', n)}", where, chat, reading)))


def rows_of_chat(record: dict[str, Any], session: str, where: Place, chat: Chat, reading: Reading) -> Iterator[Row]:
    """A row for each answer of one conversation."""
    context, step = Context(), 0
    for message in objects(record, "messages" if "messages" in record else "conversations", where):
        said = chat.message(message)
        prompt, ids = context.length, context.blocks[:]
        context.add(said)
        if str(message.get("role") or message.get("from")) not in ANSWERS:
            continue
        if prompt == 0 or not len(said):
            reading.drop("answers_without_a_prompt_or_text")
            continue
        yield Row(session, "main", step, prompt, len(said), agent_type="chat", hash_ids=ids,
                  context_ids=context.blocks[:], lengths=chat.lengths)
        step += 1


FORMAT = Format("chats", "plain conversations with text: messages, or ShareGPT's conversations",
                ({"messages": LIST, "messages[].role": ANY, "messages[].content": ANY},
                 {"conversations": LIST, "conversations[].from": ANY, "conversations[].value": ANY}),
                read_chats, ("tokenizer",))
