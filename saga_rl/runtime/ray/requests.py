"""What a request to a replica of Ray Serve LLM says of itself: whose it is, and about how long its prompt is.

Ray's front hands on the parsed body (a pydantic model of vLLM's) and the client's headers. Prompts are not tokenized
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saga_rl.runtime.server.http.session import who_of
from saga_rl.runtime.sessions.hints import Hints, read_hints

CHARACTERS_A_TOKEN = 4


def read_request(args: Sequence[Any]) -> tuple[Any, Hints, int] | None:
    """Return (body, its hints, estimated prompt tokens) of a call's arguments; None where nothing is generated."""
    body = args[0] if args else None
    prompt = getattr(body, "messages", None)
    if prompt is None:
        prompt = getattr(body, "prompt", None)
    if prompt is None or not hasattr(body, "max_tokens"):
        return None
    info = args[1] if len(args) > 1 else None
    headers = {str(k).lower().encode("latin-1", "replace"): str(v).encode("latin-1", "replace")
               for k, v in (getattr(info, "headers", None) or {}).items()}
    extra = getattr(body, "vllm_xargs", None)
    fields = {"session_id": getattr(body, "session_id", None), "vllm_xargs": extra,
              "metadata": getattr(body, "metadata", None)}
    who = who_of(fields, headers)
    hints = read_hints(who.session, extra if isinstance(extra, dict) else None)
    if who.final and not hints.final:
        hints = read_hints(hints.session, {**(extra or {}), "saga_final": 1})
    return body, hints, max(_tokens(prompt), 1)


def write_hints(body: Any, hints: Hints) -> None:
    """Write the session that a header named, and the end that one announced, where the replica's engine reads it."""
    if hints.session is not None and not getattr(body, "session_id", None):
        body.session_id = hints.session
    extra = getattr(body, "vllm_xargs", None) or {}
    if hints.final and "saga_final" not in extra:
        body.vllm_xargs = {**extra, "saga_final": 1}


def _tokens(prompt: Any) -> int:
    """Count token ids, and a token for every four characters of text; of a list of prompts all of them."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    return _characters(prompt) // CHARACTERS_A_TOKEN


def _characters(value: Any) -> int:
    """Count the characters of all text in it; a token id counts as `CHARACTERS_A_TOKEN`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int):
        return CHARACTERS_A_TOKEN
    if isinstance(value, dict):
        return sum(_characters(v) for k, v in value.items() if k != "role")
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    if hasattr(value, "model_dump"):
        return _characters(value.model_dump(exclude_none=True))
    return 0
