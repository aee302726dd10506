"""Who a request says that it is: vLLM's own `session_id`, headers that agents and gateways send, metadata of the APIs,
and vLLM Router's `agentic_context`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from saga_rl.runtime.sessions.hints import cut_name

HEADERS = (b"x-session-id", b"x-claude-code-session-id", b"session-id", b"session_id", b"x-session-affinity",
           b"x-opencode-session", b"x-conversation-id", b"conversation_id", b"x-litellm-session-id",
           b"helicone-session-id", b"x-dynamo-session-id", b"x-correlation-id")
"""In this order. Request ids (`x-client-request-id`) are left out: most clients give each request its own."""
MOST_DIGITS = 64
METADATA = ("session_id", "sessionId", "conversation_id", "thread_id")
FINAL_HEADERS = (b"x-saga-final", b"x-dynamo-session-final")
AGENT_HEADER, PARENT_AGENT_HEADER = b"x-claude-code-agent-id", b"x-claude-code-parent-agent-id"
"""A sub-agent of the session, and the sub-agent that called it; the main agent sends neither."""
SESSION_HEADER, THREAD_HEADER, PARENT_THREAD_HEADER = b"session-id", b"thread-id", b"x-codex-parent-thread-id"
"""Codex: a sub-agent's thread has another id than its session, and names the thread that called it."""
MAIN = "main"
PARENT_HEADERS = (b"x-parent-session-id", b"x-dynamo-parent-session-id")
"""The session whose sub-agent the named session is."""
RETRY_HEADER = b"x-stainless-retry-count"
"""How often the OpenAI and Anthropic SDKs have sent this request before."""
CONTEXT = "agentic_context"
_CLAUDE = re.compile(r"_session_([0-9a-fA-F-]{8,64})$")
Headers = Mapping[bytes, bytes]


class Who(NamedTuple):
    """What a request says of itself; None where it says nothing."""

    session: str | None = None
    source: str = ""
    """Where the session's name stands."""
    agent: str | None = None
    """Within the session. None: the main agent, or it does not say."""
    caller: str | None = None
    """The agent that called this one."""
    parent: str | None = None
    """The session whose sub-agent the session is."""
    may_be_main: bool = False
    """Every agent has a name, the main one too."""
    retry: bool = False
    final: bool = False


def who_of(body: Mapping[str, Any], headers: Headers) -> Who:
    """Not looked at, since many sessions share one: `user`, `safety_identifier`, `prompt_cache_key`."""
    xargs = body.get("vllm_xargs")
    context = agentic_context(xargs)
    session, source = _session(body, headers, xargs, context)
    agent, caller = _name(_header(headers, AGENT_HEADER)), _name(_header(headers, PARENT_AGENT_HEADER))
    parent = next((p for h in PARENT_HEADERS if (p := _name(_header(headers, h)))), None)
    named_main = False
    thread = _name(_header(headers, THREAD_HEADER)) if source == SESSION_HEADER.decode() else None
    if agent is None and thread not in (None, session):
        agent, caller = thread, caller or _name(_header(headers, PARENT_THREAD_HEADER))
    if agent is not None:
        caller = caller or MAIN  # a name that nobody has: the main agent
    elif context:
        agent, caller = _name(context.get("agent_id")), _name(context.get("parent_agent_id"))
        named_main = agent is not None and caller is None
        program, above = _name(context.get("program_id")), _name(context.get("parent_program_id"))
        if above is not None and above != program:
            if _name(context.get("session_id")):  # programs of one session: the called one is an agent of it
                agent, caller, named_main = agent or program, caller or above, False
            else:
                parent = parent or above
    retries = _header(headers, RETRY_HEADER)
    return Who(session, source, agent, caller, parent, named_main, retries.isdigit() and int(retries[:9]) > 0,
               any(_header(headers, h).lower() in ("1", "true") for h in FINAL_HEADERS)
               or context.get("expected_resume") is False)


def context_hints(xargs: Any) -> dict[str, Any]:
    """Hints that vLLM Router's `agentic_context` gives."""
    context = agentic_context(xargs)
    out: dict[str, Any] = {}
    deadline, kind = context.get("deadline_seconds"), context.get("subagent_type") or context.get("agent_type")
    if isinstance(deadline, int | float) and not isinstance(deadline, bool) and 0 <= deadline < math.inf:
        out["saga_deadline_s"] = deadline
    if isinstance(kind, str) and kind:
        out["saga_agent_type"] = cut_name(kind)
    return out


def agentic_context(xargs: Any) -> dict[str, Any]:
    """vLLM Router's `agentic_context`, an object or JSON in text."""
    value = xargs.get(CONTEXT) if isinstance(xargs, dict) else None
    if isinstance(value, str) and len(value) <= 4096:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _session(body: Mapping[str, Any], headers: Headers, xargs: Any, context: Mapping[str, Any]
             ) -> tuple[str | None, str]:
    given = body.get("session_id")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)[:MOST_DIGITS]
    places = [("session_id", given), *((h.decode(), _header(headers, h)) for h in HEADERS),
              ("vllm_xargs.session_id", xargs.get("session_id") if isinstance(xargs, dict) else None),
              ("agentic_context", context.get("session_id")), ("agentic_context", context.get("program_id")),
              ("metadata", _metadata(body.get("metadata"))), ("conversation", _conversation(body.get("conversation")))]
    for source, found in places:
        if (name := _name(found)) is not None:
            return name, source
    return None, ""


def _name(value: Any) -> str | None:
    return cut_name(value) if isinstance(value, str) and value else None


def _header(headers: Headers, name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1").strip()


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
