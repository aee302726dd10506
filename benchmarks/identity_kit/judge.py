"""Plays requests to the middleware's planner, and compares the sessions it finds with the true ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from saga_rl.runtime.server.http.plan import Plan, Planner
from saga_rl.runtime.server.http.settings import Settings, Tenants


@dataclass(frozen=True)
class Asked:
    """A request is sent. talk: its conversation; caller: whose sub-agent's first request it is."""

    number: int
    talk: str
    dialect: str
    raw: bytes
    caller: str = ""


@dataclass(frozen=True)
class Told:
    """Request `number` is answered with `pieces`; None: its client leaves."""

    number: int
    pieces: list[bytes] | None
    stream: bool = False


def judge(events: Iterable[Asked | Told], named: str = "") -> dict[str, Any]:
    """For each request, the pair (the one before it in its conversation, it) is judged: linked right, linked with
    another conversation, or taken for a new one. precision = right / links made; recall = right / pairs there are.
    A request that is sent again counts with the one that it repeats. Twins, conversations whose prompts and answers
    were the same to the byte up to then, count as one: nobody can tell them apart, and their KV is the same.

    named: what every request's `X-Session-ID` says, if anything."""
    planner = Planner(Settings(), Tenants(Settings(), []), Counter())
    under_way: dict[int, Plan] = {}
    last_of: dict[str, int] = {}
    last_in: dict[Any, int] = {}
    seen: dict[int, bytes] = {}
    session_of: dict[str, str | None] = {}
    requests = pairs = right = wrong = missed = subs = subs_right = 0
    headers = [(b"x-session-id", named.encode())] if named else []
    for event in events:
        if isinstance(event, Told):
            plan = under_way.pop(event.number)
            if event.pieces is not None:
                kind = b"text/event-stream" if event.stream else b"application/json"
                plan.tap.start({"status": 200, "headers": [(b"content-type", kind)]})
                for k, piece in enumerate(event.pieces):
                    plan.tap.body(piece, k == len(event.pieces) - 1)
            planner.done(plan)
            seen[event.number] += b"".join(event.pieces or ())
            continue
        made = planner.plan(event.dialect, headers, event.raw)
        assert made is not None
        under_way[event.number] = made
        seen[event.number] = event.raw
        found = made.session, made.agent
        requests += 1
        before, linked = last_of.get(event.talk), last_in.get(found)
        pairs += before is not None
        if linked is not None:
            twin = linked == before or (before is not None and seen[linked] == seen[before])
            right += twin
            wrong += not twin
        elif before is not None:
            missed += 1
        if event.caller:
            subs += 1
            subs_right += session_of.get(event.caller) == made.session
        session_of[event.talk] = made.session
        last_of[event.talk] = last_in[found] = event.number
    nan = float("nan")
    return {"requests": requests, "conversations": len(last_of), "pairs": pairs, "right": right, "wrong": wrong,
            "missed": missed, "precision": right / (right + wrong) if right + wrong else nan,
            "recall": right / pairs if pairs else nan, "sub-agents": f"{subs_right}/{subs}" if subs else ""}
