"""Sessions that a request names: vLLM's own `session_id`, headers that agents send, metadata of the APIs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from saga_rl.runtime.sessions.hints import cut_name

HEADERS = (b"x-session-id", b"x-claude-code-session-id", b"session-id", b"session_id", b"x-session-affinity",
           b"x-opencode-session", b"x-conversation-id", b"conversation_id", b"x-litellm-session-id",
           b"helicone-session-id", b"x-dynamo-session-id", b"x-correlation-id")
"""In this order. Request ids (`x-client-request-id`) are left out: most clients give each request its own."""
MOST_DIGITS = 64
METADATA = ("session_id", "sessionId", "conversation_id", "thread_id")
FINAL_HEADERS = (b"x-saga-final", b"x-dynamo-session-final")
AGENT_HEADER = b"x-claude-code-agent-id"
"""A sub-agent of the session; the main agent sends none."""
PARENT_HEADERS = (b"x-parent-session-id", b"x-dynamo-parent-session-id")
"""The session whose sub-agent the named session is."""
_CLAUDE = re.compile(r"_session_([0-9a-fA-F-]{8,64})$")


def named_session(body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str | None:
    """The session that this request names; None: none. Not looked at, since many sessions share one: `user`,
    `safety_identifier`, `prompt_cache_key`."""
    xargs = body.get("vllm_xargs")
    context, given = _context(xargs), body.get("session_id")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)[:MOST_DIGITS]
    for found in (given, *(_header(headers, h) for h in HEADERS),
                  xargs.get("session_id") if isinstance(xargs, dict) else None,
                  context.get("session_id"), context.get("program_id"), _metadata(body.get("metadata")),
                  _conversation(body.get("conversation"))):
        if isinstance(found, str) and found:
            return cut_name(found)
    return None


def sub_agent(body: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> tuple[str | None, str | None]:
    """(the sub-agent of the named session that sends this request, the session whose sub-agent the named session is);
    None where the request does not say."""
    context = _context(body.get("vllm_xargs"))
    agent = _header(headers, AGENT_HEADER) or context.get("agent_id")
    parent = next((p for h in PARENT_HEADERS if (p := _header(headers, h))), None) or context.get("parent_program_id")
    return (cut_name(agent) if isinstance(agent, str) and agent else None,
            cut_name(parent) if isinstance(parent, str) and parent else None)


def announced_end(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a header says that this request is its session's last."""
    return any(_header(headers, h).lower() in ("1", "true") for h in FINAL_HEADERS)


def _header(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1").strip()


def _context(xargs: Any) -> dict[str, Any]:
    """vLLM Router's `agentic_context`, an object or JSON in text."""
    value = xargs.get("agentic_context") if isinstance(xargs, dict) else None
    if isinstance(value, str) and len(value) <= 4096:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


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
