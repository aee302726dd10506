"""Importer `vllm-multi-turn`: conversations as vLLM's multi-turn benchmark reads and writes them, a JSON list of `id`
and `messages`. Read as `chats` reads them; the id names the session."""

from __future__ import annotations

from saga_rl.aeg.importers.chats import read_chats
from saga_rl.aeg.importers.format import ANY, LIST, Format

FORMAT = Format("vllm-multi-turn", "conversations of vLLM's multi-turn benchmark, with text",
                ({"id": ANY, "messages": LIST, "messages[].role": ANY, "messages[].content": ANY},), read_chats,
                ("tokenizer",))
