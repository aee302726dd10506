"""Ray Serve LLM with `SAGA_RL_EMULATE`, our scheduler class and our router in the file of docs/how-to/emulate.md: it
starts, says what it is, answers what a request prescribes, and keeps sessions where their KV is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("ray.serve.llm", reason="Ray Serve LLM is not installed (extra ray-serve)", exc_type=ImportError)
from live_kit import until
from ray_kit import RayApp

pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayApp]:
    a = RayApp(tmp_path_factory.mktemp("ray"))
    try:
        a.wait()
        yield a
    finally:
        a.stop()


def replicas_that_said(app: RayApp, text: str) -> set[str]:
    """Process numbers of the replicas whose output has `text`."""
    return {pid for pid, said in re.findall(r"ServeReplica:agents:\S+ pid=(\d+)\)\S* (.*)", app.log.read_text())
            if text in said}


def test_each_replica_schedules_with_us_on_an_emulated_device(app):
    assert len(replicas_that_said(app, "saga-rl: policy likely (")) == 2
    assert len(replicas_that_said(app, "saga-rl: EMULATED device: as-the-test-says")) == 2


def test_it_answers_what_is_prescribed(app):
    def ask(n: int) -> str:
        body = app.complete(f"question {n}", 7, session_id=f"s{n}", vllm_xargs={"saga_answer": f"I am well {n}"})
        assert body["usage"]["completion_tokens"] == 7
        return str(body["choices"][0]["text"])

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert all(a.startswith(f"I am well {n}"[:12]) for n, a in enumerate(answers)), answers


def test_chat_ends_where_the_prescription_ends(app):
    r = app.http.post("/v1/chat/completions", json={
        "model": "tiny", "max_tokens": 50, "messages": [{"role": "user", "content": "how are you?"}],
        "vllm_xargs": {"saga_answer": "quite well"}})
    assert r.status_code == 200, r.text
    said = r.json()["choices"][0]
    assert said["message"]["content"].strip() == "quite well" and said["finish_reason"] == "stop"


def test_sessions_stay_where_their_kv_is_and_new_ones_spread(app):
    until(lambda: any(r["ready"] for r in app.routers()), "our router is ready")

    def turn(name: str) -> int:
        """Tokens that the engine found cached."""
        r = app.http.post("/v1/completions", headers={"X-Session-ID": name}, json={
            "model": "tiny", "prompt": f"{name} tells a long story " * 60, "max_tokens": 3, "ignore_eos": True})
        assert r.status_code == 200, r.text
        usage = r.json()["usage"]
        assert usage["prompt_tokens"] > 200
        return (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    names = [f"{letter} session" for letter in "abcdef"]
    first = [turn(name) for name in names]
    again = [turn(name) for name in reversed(names)]
    assert max(first) < 32 and min(again) > 200, (first, again)

    def settled() -> dict | None:
        (r,) = app.routers()
        return r if r.get("placements", 0) >= 2 * len(names) and set(r["homed"].values()) != {0} else None

    said = until(settled, "the router has counted them")
    assert len(said["homed"]) == 2 and min(said["homed"].values()) >= 3, said
    failed = [k for k in said if k.startswith("fallback/") and not k.endswith("/not ready")]
    assert said["migrations"] == 0 and not failed, said
