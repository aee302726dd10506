"""What a client may tell the engine about a request: `session_id` and the `saga_*` keys of `vllm_xargs`.

Every hint is optional. One that cannot be read is left out and counted; a request is never refused for its hints.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNPROVED = "\0unproved "
MAX_NAME = 200
"""Characters kept of a name, so that a client cannot fill the engine's memory, see `cut_name`."""


@dataclass(frozen=True)
class Hints:
    session: str | None = None
    """None: the request names no session and is a chain of its own."""
    agent: int = 0
    tool: str | None = None
    """The tool that ran before this request."""
    next_tool: str | None = None
    """The tool that this request's answer will call (a replayed trace knows)."""
    tenant: str = "default"
    agent_type: str = "agent"
    final: bool = False
    deadline_s: float = math.nan
    """Seconds from now."""
    caller: int = -1
    """The agent of the session that called this one, a sub-agent; -1: nobody said."""
    unnamed: bool = False
    """Nobody named the session, and no earlier prompt is known that this one extends: told by the API server."""
    unread: tuple[str, ...] = ()
    """Hints that were given and could not be read."""


def proof_of(key: str, tenant: str) -> str:
    """What shows that a tenant was named by an API server whose secret is `key` (hex)."""
    return hmac.new(bytes.fromhex(key), tenant.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def read_hints(session_id: str | None, extra: Mapping[str, Any] | None, keys: Iterable[str] = ()) -> Hints:
    """The hints of one request from vLLM's `request.session_id` and `sampling_params.extra_args`.

    keys: of the API servers that tell tenants apart. If there are any, a request without a proof made with one of them
    came by a way that nobody reads: its tenant is `default`, and its session is among such requests' own."""
    extra = extra or {}
    bad: list[str] = []
    if keys and not _proved(extra, keys):
        extra = {k: v for k, v in extra.items() if k != "saga_tenant"}
        session_id = f"{UNPROVED}{session_id}" if session_id else session_id

    def read(key: str, convert: Any, default: Any) -> Any:
        if key not in extra:
            return default
        try:
            return convert(extra[key])
        except (TypeError, ValueError, OverflowError):
            bad.append(key)
            return default

    return Hints(
        session=cut_name(session_id) if session_id else None, agent=read("saga_agent", _agent, 0),
        tool=read("saga_tool", _name, None), next_tool=read("saga_next_tool", _name, None),
        tenant=read("saga_tenant", _name, None) or "default",
        agent_type=read("saga_agent_type", _name, None) or "agent", final=read("saga_final", _flag, False),
        deadline_s=read("saga_deadline_s", _seconds, math.nan), caller=read("saga_caller", _agent, -1),
        unnamed=read("saga_unnamed", _flag, False),
        unread=tuple(bad),
    )


def _proved(extra: Mapping[str, Any], keys: Iterable[str]) -> bool:
    tenant, proof = extra.get("saga_tenant", "default"), extra.get("saga_proof")
    return isinstance(tenant, str) and isinstance(proof, str) and any(
        hmac.compare_digest(proof_of(key, tenant).encode(), proof.encode("utf-8", "surrogatepass")) for key in keys)


def cut_name(name: str) -> str:
    """A name of at most `MAX_NAME` characters; longer ones end in a hash of all of them, so that two stay two."""
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return name[: MAX_NAME - len(digest)] + digest


def _agent(value: Any) -> int:
    n = int(value)
    if not 0 <= n < 2**31 or n != float(value):
        raise ValueError(value)
    return n


def _name(value: Any) -> str | None:
    if not isinstance(value, str):
        raise TypeError(value)
    return cut_name(value) or None


def _flag(value: Any) -> bool:
    n = float(value)
    if n not in (0.0, 1.0):
        raise ValueError(value)
    return n == 1.0


def _seconds(value: Any) -> float:
    s = float(value)
    if not 0.0 <= s < 1e9:
        raise ValueError(value)
    return s
