"""Sessions that a request names: vLLM's own `session_id`, headers that agents send, metadata of the APIs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from saga_rl.runtime.sessions.hints import cut_name

HEADERS = (b"x-session-id", b"x-claude-code-session-id", b"session-id", b"session_id", b"x-session-affinity",
           b"x-opencode-session", b"x-conversation-id", b"conversation_id", b"x-litellm-session-id",
           b"helicone-session-id")
"""In this order. Request ids (`x-client-request-id`) are left out: most clients give each request its own."""
MOST_DIGITS = 64
METADATA = ("session_id", "conversation_id", "thread_id")
FINAL_HEADER = b"x-saga-final"
_CLAUDE = re.compile(r"_session_([0-9a-fA-F-]{8,64})$")


def named_session(body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str | None:
    """The session that this request names; None: none. Not looked at, since many sessions share one: `user`,
    `safety_identifier`, `prompt_cache_key`."""
    xargs = body.get("vllm_xargs")
    given = body.get("session_id")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)[:MOST_DIGITS]
    for found in (given, *(headers.get(h, b"").decode("latin-1").strip() for h in HEADERS),
                  xargs.get("session_id") if isinstance(xargs, dict) else None, _metadata(body.get("metadata")),
                  _conversation(body.get("conversation"))):
        if isinstance(found, str) and found:
            return cut_name(found)
    return None


def _metadata(metadata: Any) -> str | None:
    if not isinstance(metadata, dict):
        return None
    for key in METADATA:
        if isinstance(metadata.get(key), str) and metadata[key]:
            return str(metadata[key])
    user = metadata.get("user_id")
    if not isinstance(user, str) or len(user) > 4096:
        return None
    if user.startswith("{"):
        try:
            given = json.loads(user)
        except (ValueError, RecursionError):
            return None
        session = given.get("session_id") if isinstance(given, dict) else None
        return session if isinstance(session, str) else None
    found = _CLAUDE.search(user)
    return found.group(1) if found else None  # a user's id alone is no session


def _conversation(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("id")
    return value if isinstance(value, str) else None
