"""What vLLM does between its HTTP server and its engines, under our default policy on an emulated device: several
answers, beam search, grammars, adapters, pauses, and what is refused before a model loads."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import live_kit
import pytest
from live_kit import BLOCK, SAGA, Server, until

from saga_rl.replay.tiny_model import build_tiny_model
from saga_rl.runtime.config import versions
from saga_rl.runtime.config.emulated import Settings

pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400), pytest.mark.skipif(
    int(versions.installed()[1].split(".")[1]) < 32, reason="routes and counts are those of vLLM 0.32 and later")]
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["loud"], "properties": {
    "loud": {"type": "boolean"}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("features")
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(live_kit.ENV, "VLLM_SERVER_DEV_MODE", "1")  # for /pause and /sleep
        s = Server(folder, "--policy", "auto", "--enable-lora", "--lora-modules", f"adapter={adapter}",
                   window=1024, blocks=64, step_s=0.005, key="admin")
    try:
        s.wait()
        yield s
    finally:
        s.stop()


def said(server: Server, path: str, **body: Any) -> dict[str, Any]:
    r = server.http.post(path, json={"model": "tiny", "temperature": 0, **body})
    assert r.status_code == 200, r.text
    return r.json()


def counted(server: Server) -> dict[str, Any]:
    """What the engine says once it is idle; no hook of ours has failed."""
    (engine,) = server.until_idle().values()
    assert not [k for k in engine if k.startswith("failed/")], engine
    assert not engine.get("invariants broken"), server.log.read_text()[-3000:]
    return engine


def test_several_answers_to_one_prompt(server: Server) -> None:
    before = counted(server).get("requests", 0)
    got = said(server, "/v1/completions", prompt="tell me " * 40, n=3, max_tokens=5, ignore_eos=True, session_id="n",
               temperature=1.0)
    assert len(got["choices"]) == 3 and got["usage"]["completion_tokens"] == 15
    assert counted(server)["requests"] == before + 3


def test_a_beam_search_is_a_request_for_each_beam_and_token(server: Server) -> None:
    before = counted(server).get("requests", 0)
    got = said(server, "/v1/completions", prompt="search for it " * 20, n=2, use_beam_search=True, max_tokens=4,
               ignore_eos=True, session_id="beams")
    assert len(got["choices"]) == 2
    assert counted(server)["requests"] == before + 1 + 3 * 2  # one prompt, then two beams for each token


def test_a_grammar_is_kept(server: Server) -> None:
    got = said(server, "/v1/chat/completions", messages=[{"role": "user", "content": "which?"}], max_tokens=60,
               response_format={"type": "json_schema", "json_schema": {"name": "choice", "schema": SCHEMA}})
    assert json.loads(got["choices"][0]["message"]["content"])["loud"] in (True, False)
    counted(server)


def test_adapters_take_turns(server: Server) -> None:
    for model in ("adapter", "tiny", "adapter"):
        got = said(server, "/v1/completions", model=model, prompt="who are you " * 20, max_tokens=3, ignore_eos=True)
        assert got["usage"]["completion_tokens"] == 3
    counted(server)


@pytest.mark.parametrize(("path", "back"), [("/pause?mode=keep", "/resume"), ("/sleep?level=0&mode=keep", "/wake_up"),
                                            ("/sleep?level=1&mode=wait", "/wake_up")])
def test_a_pause_holds_what_comes_until_it_is_over(server: Server, path: str, back: str) -> None:
    counted(server)
    assert server.http.post(path).status_code == 200
    with ThreadPoolExecutor(1) as pool:  # an httpx client may be used by several threads
        waits = pool.submit(server.complete, "now " * 20, 3)
        until(lambda: server.engines()[0]["requests/waiting"] == 1, "it waits")
        assert not waits.done()
        assert server.http.post(back).status_code == 200
        assert waits.result().json()["usage"]["completion_tokens"] == 3
    counted(server)


def test_caches_are_cleared(server: Server) -> None:
    prompt = "remember this " * 60

    def cached() -> int:
        usage = said(server, "/v1/completions", prompt=prompt, max_tokens=3, ignore_eos=True)["usage"]
        return (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    assert (cached() < BLOCK, cached() >= BLOCK) == (True, True)
    counted(server)
    assert server.http.post("/reset_prefix_cache").status_code == 200
    assert counted(server)["kv/live"] + counted(server)["kv/ended"] == 0
    assert cached() < BLOCK


def test_embeddings_of_a_model_that_generates_are_not_found(server: Server) -> None:
    r = server.http.post("/v1/embeddings", json={"model": "tiny", "input": "hello"})
    assert 400 <= r.status_code < 500
    counted(server)


@pytest.mark.parametrize(("flags", "says"), [
    (["--runner", "pooling"], "--runner: is pooling"),
    (["--enable-sleep-mode"], "--enable-sleep-mode: asks for something of a real GPU"),
    (["--scheduling-policy", "priority"], "--scheduling-policy priority: is set beside the ordering session-fcfs"),
])
def test_what_cannot_be_served_is_refused_in_one_line(tmp_path: Path, flags: list[str], says: str) -> None:
    model = build_tiny_model(tmp_path / "model", layers=1, hidden=64, max_len=1024)
    device = Settings(str(live_kit.profile(tmp_path, 0.005)), kv_tokens=2048)
    done = subprocess.run([*SAGA, "serve", str(model), "--port", str(live_kit.free_port()), *flags], timeout=900,
                          capture_output=True, text=True, env={**live_kit.ENV, "SAGA_RL_EMULATE": device.value()})
    assert done.returncode == 2, done.stderr[-3000:]
    assert says in done.stderr.strip().splitlines()[-1]
