"""A real server with two tenants' keys: what one can learn of or do to the other, clients that leave, and any input."""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_kit import BLOCK, ENDLESS, Server, until

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")
import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEYS = {"a": "sesame", "b": "open"}
TEXT = "what one tenant asked, long enough for some blocks of tokens " * 8
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]


class TwoTenants(Server):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "--policy", "saga+", "--enable-prompt-tokens-details", "--enable-auto-tool-choice",
                         "--tool-call-parser", "hermes", "--api-key", *KEYS.values(), "--additional-config",
                         json.dumps({"saga": {"poll_s": 0.2}, "saga_http": {"cache_salt": True}}))
        self.headers["Authorization"] = self.http.headers["Authorization"] = f"Bearer {KEYS['a']}"

    def post(self, path: str, key: str, **more: Any) -> httpx.Response:
        return self.http.post(path, headers={"Authorization": f"Bearer {KEYS[key]}"}, **more)

    def cached(self, key: str, prompt: str, **more: Any) -> int:
        """Tokens of `prompt` found in the cache when tenant `key` asks."""
        r = self.post("/v1/completions", key, json={"model": "tiny", "prompt": prompt, "max_tokens": 2,
                                                    "temperature": 0, "ignore_eos": True, **more})
        assert r.status_code == 200, r.text
        return (r.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    def hits(self) -> float:
        """Tokens found in the cache since the start, all requests."""
        self.until_idle()
        found = re.findall(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", self.http.get("/metrics").text, re.M)
        assert found
        return sum(map(float, found))

    def engine_status(self) -> dict[str, Any]:
        return self.engines()[0]

    def sound(self) -> None:
        """Nothing of ours failed so far, in the API server or in the engine, and no block is lost."""
        engine = self.until_idle()[0]
        assert {k: v for k, v in engine.items() if k.startswith("failed/")} == {}
        assert engine.get("invariants broken", 0) == 0
        assert engine["kv/running"] == 0
        assert sum(engine[f"kv/{s}"] for s in ("live", "waiting", "ended", "empty")) == engine["kv/blocks"]
        figures = self.http.get("/metrics").text
        assert not re.findall(r"^saga_http_failures_total\{.*", figures, re.M)
        ours = [line for line in self.log.read_text().splitlines() if "saga-rl: http" in line or "/saga_rl/" in line]
        assert ours == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoTenants]:
    s = TwoTenants(tmp_path_factory.mktemp("http"))
    try:
        s.wait()
        yield s
    finally:
        s.stop()


def test_nobody_finds_another_tenants_prefixes(server: TwoTenants) -> None:
    """What a client could time is whether its prompt was cached: the server says it here, so the clock is not asked."""
    assert server.cached("a", TEXT) == 0
    assert server.cached("a", TEXT) >= BLOCK  # its own
    assert server.cached("b", TEXT) == 0
    assert server.cached("b", TEXT, cache_salt="guess") == 0
    assert server.cached("a", TEXT, cache_salt="guess") == 0  # a salt of its own is its own, too
    assert server.cached("b", TEXT, vllm_xargs={"saga_tenant": "a"}) >= BLOCK  # its own again, whatever it says


@pytest.mark.parametrize("path", PATHS)
def test_that_holds_on_every_endpoint(server: TwoTenants, path: str) -> None:
    """By vLLM's own count of tokens found, since not every endpoint says it."""
    text = f"{path} {TEXT}"
    said = {"messages": [{"role": "user", "content": text}]}
    body = {"model": "tiny", "max_tokens": 2, "max_output_tokens": 16, "temperature": 0,
            **{"/v1/completions": {"prompt": text}, "/v1/responses": {"input": text}}.get(path, said)}
    found = [server.hits()]
    for key in ("a", "a", "b", "b"):
        r = server.post(path, key, json=body)
        assert r.status_code == 200, r.text
        found.append(server.hits())
    new = [after - before for before, after in itertools.pairwise(found)]
    assert new[0] == new[2] == 0, new
    assert min(new[1], new[3]) >= BLOCK, new


def test_nobody_takes_anothers_name_or_ends_its_session(server: TwoTenants) -> None:
    def tenants() -> set[str]:
        return {k.split("/")[1] for k in server.engine_status() if k.startswith("tenant/")}

    for key in KEYS:
        server.cached(key, TEXT, session_id="shared name")
    before = tenants()
    assert len(before) == 2
    ended = server.engine_status().get("sessions/finished", 0)
    talk = TEXT  # one conversation that goes on: a name under which many begin is not believed
    for forged in [*sorted(before), "root", "a"]:
        talk += f" {forged}"
        server.cached("b", talk, session_id="shared name", vllm_xargs={"saga_tenant": forged})
    assert tenants() == before
    server.cached("b", talk + " end", session_id="shared name", vllm_xargs={"saga_final": 1})
    assert server.engine_status()["sessions/finished"] == ended + 1  # b's; a's goes on
    server.cached("a", TEXT + "end", session_id="shared name", vllm_xargs={"saga_final": 1})
    assert server.engine_status()["sessions/finished"] == ended + 2


def test_clients_that_leave_at_any_time_leave_nothing(server: TwoTenants) -> None:
    """Their answers have no end: what nobody reads is stopped, or the server is never idle again."""
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": ENDLESS, "ignore_eos": True, "stream": True}
    for lines in (0, 1, 5):
        with server.http.stream("POST", "/v1/completions", json=body) as r:
            for _ in zip(range(lines), r.iter_lines(), strict=False):
                pass
    raw = json.dumps(body).encode()
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {server.headers['Authorization']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n").encode()
    for sent in (head, head + raw[:40], head + raw):  # before the body, in it, after it
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(sent)
    server.sound()


def test_a_client_that_reads_slowly_gets_its_whole_answer(server: TwoTenants) -> None:
    """It begins to read when the server has nothing more to say."""
    body = {"model": "tiny", "prompt": TEXT, "max_tokens": 300, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}
    asked = server.engine_status().get("requests", 0)
    with httpx.Client(base_url=server.url, timeout=300, headers=server.headers) as slow, slow.stream(
            "POST", "/v1/completions", json=body) as r:
        until(lambda: server.engine_status().get("requests", 0) == asked + 1, "the engine has the request")
        server.until_idle()
        lines = [x[6:] for x in r.iter_lines() if x.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["usage"]["completion_tokens"] == 300
    server.sound()


NAMES = st.sampled_from(["session_id", "vllm_xargs", "cache_salt", "metadata", "conversation", "previous_response_id",
                         "messages", "prompt", "input", "tools", "tool_choice", "system", "stream", "user", "model"])
LEAF = st.none() | st.booleans() | st.integers(-2, 2**40) | st.floats() | st.text(max_size=20) | st.sampled_from(
    ["tiny", "user", "assistant", "tool", "saga_tool", "saga_agent", "\0", "\ud800", "x" * 9000])
ANY = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    NAMES | st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "saga_agent",
                             "saga_final", "saga_tenant", "saga_deadline_s", "saga_answer", "saga_answer_ids"])
    | st.text(max_size=8), inner, max_size=5), max_leaves=12)
RIGHT = {"/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]}, "/v1/completions": {"prompt": "hi"},
         "/v1/responses": {"input": "hi"}, "/v1/messages": {"messages": [{"role": "user", "content": "hi"}]}}
KNOWN = {"model": "tiny", "max_tokens": 2, "max_output_tokens": 2}
HEADERS = st.dictionaries(
    st.sampled_from(["X-Session-ID", "X-Saga-Final", "X-Conversation-ID", "session_id", "X-LiteLLM-Session-Id"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=300), max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), extra=st.dictionaries(NAMES, ANY, max_size=4), headers=HEADERS,
       key=st.sampled_from(sorted(KEYS)))
def test_whatever_a_body_says_it_is_answered_and_nothing_of_ours_fails(
        server: TwoTenants, path: str, extra: dict[str, Any], headers: dict[str, str], key: str) -> None:
    """Right bodies with anything in the fields that are read or added to. vLLM may refuse them; a failure of ours would
    be counted."""
    sent = json.dumps({**RIGHT[path], **extra, **KNOWN, "model": "tiny"}).encode()
    r = server.http.post(path, content=sent, headers={
        "Content-Type": "application/json", **{k: v.encode("latin-1") for k, v in headers.items()},
        "Authorization": f"Bearer {KEYS[key]}"})
    assert "saga" not in r.text or r.status_code < 500, r.text


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), raw=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_that_are_no_body_are_refused_as_vllm_refuses_them(server: TwoTenants, path: str, raw: bytes) -> None:
    r = server.post(path, "a", content=raw)
    assert 400 <= r.status_code < 500, (r.status_code, r.text)


def test_after_all_that_it_serves_and_nothing_of_ours_has_failed(server: TwoTenants) -> None:
    assert server.cached("a", TEXT) >= 0
    server.sound()
