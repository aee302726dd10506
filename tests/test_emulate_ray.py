"""Ray Serve LLM with `SAGA_RL_EMULATE` and our scheduler class in the file of docs/how-to/emulate.md: it starts, says
what it is, and answers what a request prescribes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("ray.serve.llm", reason="Ray Serve LLM is not installed (extra ray-serve)", exc_type=ImportError)
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
