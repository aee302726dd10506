"""What is added to one request, and what is kept of it until its answer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from saga_rl.runtime.server.http.chains import Chains
from saga_rl.runtime.server.http.dialects import MESSAGES, tool_before
from saga_rl.runtime.server.http.family import Entry
from saga_rl.runtime.server.http.prompts import Prompt
from saga_rl.runtime.server.http.reading import LARGE, Reading, read
from saga_rl.runtime.server.http.session import CONTEXT, HEADERS, Who, context_hints, who_of
from saga_rl.runtime.server.http.settings import Settings, Tenants
from saga_rl.runtime.server.http.tap import Tap
from saga_rl.runtime.sessions.hints import cut_name

log = logging.getLogger("vllm.saga_rl")
HINTS = ("saga_agent", "saga_tool", "saga_next_tool", "saga_tenant", "saga_agent_type", "saga_final", "saga_deadline_s",
         "saga_caller")
PROOF = "saga_proof"
MOST_HINT = 4096
"""Characters of a hint; longer ones are dropped (names are cut at 200 by the engine)."""
MOST_RESPONSES = 16_384
Headers = Iterable[tuple[bytes, bytes]]
_ENDS = tuple(bytes([c]) for c in b'"0123456789]}elNy')
"""What a value ends with."""


@dataclass(slots=True)
class Plan:
    body: bytes
    headers: list[tuple[bytes, bytes]]
    extra: dict[str, Any]
    """What was added, see `anthropic_hook`."""
    tap: Tap
    session: str | None = None
    agent: int = 0
    tenant: str | None = None
    entry: Entry | None = None
    over: str | None = None
    """The session that is said to be over with it."""


class Planner:
    """The state of one API server."""

    def __init__(self, settings: Settings, tenants: Tenants, counts: Counter[str]) -> None:
        self.settings, self.tenants, self.counts = settings, tenants, counts
        self._ignored = frozenset(h.lower().encode("latin-1", "replace") for h in settings.ignored_headers)
        self.chains = Chains(settings.most_nodes)
        self._tops: OrderedDict[str, str] = OrderedDict()
        """Sessions that sub-agents call their own -> the session at the top."""
        self._responses: OrderedDict[tuple[str | None, str], tuple[str, int, dict[str, str]]] = OrderedDict()

    def plan(self, dialect: str, raw_headers: Headers, raw: bytes, reading: Reading | None = None) -> Plan | None:
        """None: leave it as it is (not JSON, no object: vLLM says so). reading: of `raw`, if it was read before. What
        is added to a large body is not in it yet: `splice`."""
        raw_headers, raw = list(raw_headers), utf8(raw)
        headers = by_name(raw_headers)
        tenant = self.tenants.of(headers)
        if len(raw) > self.settings.most_bytes:
            self.counts["bodies not read"] += 1
            return self.blind(dialect, raw_headers, raw)
        reading = read(dialect, raw) if reading is None else reading
        body, turns = reading.body, reading.turns
        if not isinstance(body, dict) or not body:
            self.counts["bodies not understood"] += 1
            return None
        given = body.get("vllm_xargs")
        hints = self._hints(given, tenant)
        who = who_of(body, {k: v for k, v in headers.items() if k not in self._ignored} if self._ignored else headers)
        for key, value in context_hints(given).items():
            hints.setdefault(key, value)
        own, named = self._named(body, who, tenant)
        if named is not None and (who.agent or who.parent):
            own, named = self._called_by(own, named, who, tenant, hints)
        earlier: dict[str, str] = {}
        if named is None and isinstance(body.get("previous_response_id"), str):
            known = self._responses.get((tenant, body["previous_response_id"][:200]))
            if known is not None:
                named, earlier = known[0], known[2]
                hints.setdefault("saga_agent", known[1])
        plan = Plan(raw, [h for h in raw_headers if h[0].lower() not in self._ignored], {}, Tap(dialect, False), named,
                    tenant=tenant)
        self._place(plan, dialect, body, tenant, hints, reading, who)
        if turns and "saga_tool" not in hints:
            tool = tool_before(turns, earlier)
            if tool is not None:
                hints["saga_tool"] = cut_name(tool)
        if who.final:
            hints.setdefault("saga_final", 1)
        if plan.agent == 0 and str(hints.get("saga_final")) in ("1", "1.0", "True"):
            plan.over = plan.session
        own = own and plan.session == named
        self._add(plan, dialect, body, given, hints, own, tenant)
        self.counts["requests"] += 1
        return plan

    def blind(self, dialect: str, raw_headers: Headers, raw: bytes) -> Plan | None:
        """A body that is not read, where tenants must be told apart: the client's hints and session are replaced."""
        if not (self.tenants.strict or self.settings.cache_salt):
            return None
        raw_headers, raw = list(raw_headers), utf8(raw)
        tenant = self.tenants.of(by_name(raw_headers))
        plan = Plan(raw, [h for h in raw_headers if h[0].lower() != HEADERS[0]], {}, Tap(dialect, False))
        add: dict[str, Any] = {"vllm_xargs": {"saga_tenant": tenant or "default", PROOF: self.tenants.proof(tenant)}}
        if dialect != MESSAGES:
            add["session_id"] = None
        if self.settings.cache_salt:
            add["cache_salt"] = self.tenants.salt(tenant, None)
        plan.extra = add
        _spliced_now(plan)
        return plan

    def done(self, plan: Plan) -> dict[str, Any] | None:
        """Its request is over. The note for the engines, if there is anything to tell."""
        answer = plan.tap.answer()
        if plan.entry is not None:
            self.chains.answered(plan.entry, answer)
        if plan.tap.unread:
            self.counts["answers unread"] += 1
        if plan.over is not None and answer is not None:
            self.chains.over(plan.over)
        if plan.session is None or answer is None:
            return None
        if plan.tap.response_id is not None and plan.tap.dialect == "responses":
            key = plan.tenant, plan.tap.response_id
            self._responses[key] = (plan.session, plan.agent, dict(plan.tap.calls))
            while len(self._responses) > MOST_RESPONSES:
                self._responses.popitem(last=False)
        if plan.tap.tool is None:
            return None
        self.counts["tools seen"] += 1
        return {"session": plan.session, "agent": plan.agent, "next_tool": plan.tap.tool, "final": False}

    # ------------------------------------------------------------------ parts
    def _hints(self, given: Any, tenant: str | None) -> dict[str, Any]:
        """The client's own saga hints that may pass; the others are counted."""
        hints: dict[str, Any] = {}
        for key in HINTS:
            if not isinstance(given, dict) or key not in given:
                continue
            value = given[key]
            if not isinstance(value, str | int | float) or (isinstance(value, str) and len(value) > MOST_HINT):
                self.counts["hints dropped"] += 1
            elif key == "saga_tenant" and self.tenants.strict:
                self.counts["tenants not believed"] += 1
            else:
                hints[key] = value
        if tenant is not None and (self.tenants.strict or "saga_tenant" not in hints):
            hints["saga_tenant"] = tenant
        if self.tenants.strict:
            hints[PROOF] = self.tenants.proof(tenant)
        return hints

    def _named(self, body: dict[str, Any], who: Who, tenant: str | None) -> tuple[bool, str | None]:
        """Whether the session stands in the body already as it shall be, and its name. Each tenant has names of its
        own, so that nobody ends or enters another's session."""
        if who.session is None:
            return False, None
        if tenant is not None and self.tenants.strict:
            return False, cut_name(self.tenants.own_name(tenant, who.session))
        return body.get("session_id") == who.session, who.session

    def _called_by(self, own: bool, named: str, who: Who, tenant: str | None, hints: dict[str, Any]
                   ) -> tuple[bool, str]:
        """Session and agent of a request that names its agent, or the session that called its own one: a sub-agent is
        an agent of the session at the top. The number that the client gives itself counts before."""
        top = above = named
        if who.parent is not None:
            above = who.parent
            if tenant is not None and self.tenants.strict:
                above = cut_name(self.tenants.own_name(tenant, who.parent))
            top = self._tops.get(above, above)
            if above != named:
                self._tops[named] = top
                while len(self._tops) > MOST_RESPONSES:
                    self._tops.popitem(last=False)
        inner = named if top != named else ""
        if inner or who.agent:
            number = self.chains.named_agent(top, f"{inner}/{who.agent or ''}", who.may_be_main)
            if hints.setdefault("saga_agent", number) == number and number:
                if who.caller is not None:
                    hints.setdefault("saga_caller", self.chains.agent_called(top, f"{inner}/{who.caller}"))
                elif above != named:
                    hints.setdefault("saga_caller", self.chains.agent_called(top, f"{above}/"))
        return own and top == named, top

    def _place(self, plan: Plan, dialect: str, body: dict[str, Any], tenant: str | None, hints: dict[str, Any],
               reading: Reading, who: Who) -> None:
        """Session and agent from the chain, where nothing names them."""
        agent, turns, text = hints.get("saga_agent"), reading.turns, reading.text
        goes_on = bool(body.get("previous_response_id"))
        if agent is not None or not self.settings.chains or (turns is None and not text) or goes_on:
            plan.agent = int(agent) if isinstance(agent, int) else 0
            return
        named = plan.session
        parts = tenant or "", named or "", str(hints.get("saga_tenant", ""))
        scope = "".join(f"{len(p)}:{p}" for p in parts).encode("utf-8", "surrogatepass")
        doubted = named in self.chains.doubted
        plan.entry = entry = self.chains.arrive(Prompt(scope, turns, text, reading.parts), named, who.retry,
                                                        bool(body.get("tools")) or turns is None)
        if named in self.chains.doubted:
            self._doubted(doubted, str(named), who.source)
        if entry.chain.session != named:
            self.counts["sessions begun" if entry.begun else "sessions by chain"] += 1
        if entry.begun:
            hints["saga_unnamed"] = 1
        plan.session, plan.agent = entry.chain.session, entry.chain.agent
        plan.tap = Tap(dialect, True)
        if plan.agent:
            hints["saga_agent"] = plan.agent
            if entry.chain.caller is not None:
                hints.setdefault("saga_caller", entry.chain.caller)

    def _doubted(self, before: bool, name: str, source: str) -> None:
        """A name that is not believed came."""
        self.counts["names not believed"] += 1
        if before:
            return
        self.counts["names found out"] += 1
        if self.counts["names found out"] in (1, 10, 100, 1000):
            log.warning("saga-rl: unrelated conversations come under the session name %r (%s), so it is no longer "
                        "believed: sessions are told by their prompts (%d such names so far). Give each session a name "
                        "of its own, or ignore a header with saga_http.ignored_headers", name[:80], source,
                        self.counts["names found out"])

    def _add(self, plan: Plan, dialect: str, body: dict[str, Any], given: Any, hints: dict[str, Any], own: bool,
             tenant: str | None) -> None:
        add: dict[str, Any] = {}
        before = given if isinstance(given, dict) else {}
        merged = {**{k: v for k, v in before.items() if k not in HINTS and k != PROOF}, **hints}
        if isinstance(merged.get(CONTEXT), dict):
            merged[CONTEXT] = json.dumps(merged[CONTEXT])  # vLLM takes no object there
        if (given is None or isinstance(given, dict)) and merged != before:
            add["vllm_xargs"] = merged
        if plan.session is not None and not own:
            if dialect == MESSAGES:
                session = plan.session.encode("utf-8", "surrogatepass")
                if not _plain(session):
                    session = b"session-" + hashlib.sha256(session).hexdigest().encode()
                    plan.session = session.decode()
                plan.headers = [h for h in plan.headers if h[0].lower() != HEADERS[0]] + [(HEADERS[0], session)]
            elif body.get("session_id") is None or isinstance(body["session_id"], str | int):
                add["session_id"] = plan.session
        if self.settings.cache_salt and isinstance(body.get("cache_salt", ""), str | None):
            add["cache_salt"] = self.tenants.salt(tenant, body.get("cache_salt"))
        plan.extra = add
        _spliced_now(plan)


def by_name(raw: Headers) -> dict[bytes, bytes]:
    """Headers by their names in lower case; of several the first counts, as it does for vLLM."""
    out: dict[bytes, bytes] = {}
    for name, value in raw:
        out.setdefault(name.lower(), value)
    return out


def doubled(raw: Headers, names: Iterable[bytes | None]) -> bytes | None:
    """The first of `names` that two headers give different values; None if there is none."""
    seen: dict[bytes, bytes] = {}
    wanted = set(names)
    for name, value in raw:
        if (name := name.lower()) in wanted and seen.setdefault(name, value) != value:
            return name
    return None


def utf8(raw: bytes) -> bytes:
    """UTF-16 and UTF-32, which Python's reader takes too, as UTF-8; whatever cannot be read stays as it is."""
    if b"\0" not in raw[:4]:
        return raw
    try:
        return raw.decode(json.detect_encoding(raw), "surrogatepass").encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw


def _spliced_now(plan: Plan) -> None:
    if len(plan.body) <= LARGE:
        splice(plan)


def splice(plan: Plan) -> None:
    """Put what was added into the body, as the last keys of its object. Once."""
    if not plan.extra:
        return
    raw = plan.body  # not copied but once: it may be megabytes
    end = len(raw)
    while end and raw[end - 1] in b" \t\r\n":
        end -= 1
    last = end - 2
    while last > 0 and raw[last] in b" \t\r\n":
        last -= 1
    if end < 2 or raw[end - 1] != ord("}") or raw[last:last + 1] not in _ENDS:
        return  # no object, or an empty one
    plan.body = b"".join((memoryview(raw)[:end - 1], b",", json.dumps(plan.extra).encode()[1:]))
    plan.headers = [(k, str(len(plan.body)).encode()) if k.lower() == b"content-length" else (k, v)
                    for k, v in plan.headers]


def _plain(name: bytes) -> bool:
    return all(33 <= c < 127 for c in name)
