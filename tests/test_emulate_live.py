"""A server on emulated devices, two engines with a tier in CPU memory: what it answers, keeps and says, and its end."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_kit import BLOCK, Crowd, Server, together, until

from saga_rl.runtime.config import versions

TIER = int(versions.installed()[1].split(".")[1]) >= 32
"""Whether this vLLM (0.x) has a worker side of its offloading that can be emulated."""
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["colour", "loud"], "properties": {
    "colour": {"type": "string", "enum": ["red", "green"]}, "loud": {"type": "boolean"}}}
pytestmark = [pytest.mark.emulated, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("emulated")
    s = Server(folder, "--policy", "lru", "-dp", "2", "--enable-prompt-tokens-details", "--enable-lora",
               "--lora-modules", f"adapter={adapter(folder / 'adapter')}",
               *(["--kv-offloading-size", "0.1"] if TIER else []),
               window=1024, blocks=64, step_s=0.01)
    try:
        s.wait()
        yield s
    finally:
        s.stop()


def adapter(folder: Path) -> Path:
    """A LoRA adapter's folder without its weights."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}))
    return folder


def answer(server: Server, prompt: str, tokens: int = 60, **more: Any) -> dict[str, Any]:
    r = server.complete(prompt, tokens, **more)
    assert r.status_code == 200, r.text
    return r.json()


def test_it_says_that_it_is_emulated(server):
    assert "saga-rl: EMULATED device: as-the-test-says" in server.log.read_text()
    said = server.status()["device"]
    assert (said["device"], said["profile"], said["kv_tokens"]) == ("emulated", "as-the-test-says", 64 * BLOCK)
    assert {e["kv/blocks"] for e in server.engines().values()} == {64}


def test_it_answers_what_is_prescribed_and_then_ends(server):
    ids = [700, 42, 1999, 300]
    got = answer(server, "hello", ignore_eos=False, return_token_ids=True, vllm_xargs={"saga_answer_ids": ids})
    assert got["choices"][0]["token_ids"] == [*ids, 2]
    assert got["choices"][0]["finish_reason"] == "stop" and got["usage"]["completion_tokens"] == 5
    got = answer(server, "hello", 7, vllm_xargs={"saga_answer": "I am well"}, ignore_eos=True, logprobs=1)
    assert got["choices"][0]["text"].startswith("I am well") and got["choices"][0]["finish_reason"] == "length"
    assert got["choices"][0]["logprobs"]["token_logprobs"] == [0.0] * 7


def test_a_stop_string_is_found_in_it(server):
    got = answer(server, "count", stop=["STOP"], vllm_xargs={"saga_answer": "one two STOP three four"})
    assert got["choices"][0]["text"] == "one two " and got["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("given", "kept"), [
    ('{"colour": "green", "loud": true}', True), ("no JSON at all, whatever is asked for", False), (None, False)])
def test_a_grammar_rules_over_the_prescription(server, given, kept):
    r = server.http.post("/v1/chat/completions", json={
        "model": "tiny", "max_tokens": 100, "temperature": 0, "messages": [{"role": "user", "content": "which?"}],
        "vllm_xargs": {} if given is None else {"saga_answer": given},
        "response_format": {"type": "json_schema", "json_schema": {"name": "choice", "schema": SCHEMA}}})
    assert r.status_code == 200, r.text
    said = r.json()["choices"][0]
    found = json.loads(said["message"]["content"])
    assert said["finish_reason"] == "stop"
    assert set(found) == {"colour", "loud"} and found["colour"] in ("red", "green") and found["loud"] in (True, False)
    assert not kept or found == json.loads(given)


def test_an_adapter_without_weights_is_a_model_of_its_own(server):
    """Its KV is its own, too."""
    prompt = "what an adapter is asked, over some blocks " * 8
    cached = {}
    for name in ("tiny", "adapter", "tiny", "adapter"):
        r = server.http.post("/v1/completions", headers={"X-data-parallel-rank": "1"}, json={
            "model": name, "prompt": prompt, "max_tokens": 3, "ignore_eos": True,
            "vllm_xargs": {"saga_answer": "as told"}})
        assert r.status_code == 200, r.text
        details = r.json()["usage"]["prompt_tokens_details"] or {}
        cached.setdefault(name, []).append(details.get("cached_tokens") or 0)
    assert all(first == 0 and again >= BLOCK for first, again in cached.values()), cached


@pytest.mark.skipif(not TIER, reason="emulated from vLLM 0.32 on")
def test_kv_that_left_the_pool_comes_back_from_cpu_memory(server):
    def copied(way: str) -> float:
        return sum(v for k, v in server.figures().items()
                   if re.match(rf"vllm:kv_offload_{way}_bytes(_total)?\{{", k) and 'engine="0"' in k)

    def ask(name: str) -> int:
        r = server.http.post("/v1/completions", headers={"X-data-parallel-rank": "0"}, json={
            "model": "tiny", "prompt": f"{name} tells a long story " * 80, "max_tokens": 4, "ignore_eos": True})
        assert r.status_code == 200, r.text
        usage = r.json()["usage"]
        assert 300 < usage["prompt_tokens"] < 1000
        return (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    assert ask("first") < BLOCK
    for k in range(8):  # more than the pool holds
        ask(f"other {k}")
    until(lambda: copied("store") > 0, "KV is copied to CPU memory")
    assert copied("load") == 0
    assert ask("first") >= 8 * BLOCK
    until(lambda: copied("load") > 0, "KV came back")


def test_a_device_that_dies_on_request_takes_its_engine_along_and_no_other(server):
    async def scene(crowd: Crowd):
        other = crowd.ask("other", 300, rank=1)
        dying = await crowd.ask("dying", 100, rank=0, saga_fault="die@50#0")
        return dying, await other, await crowd.ask("later", 5)

    dying, other, later = together(server, scene)
    # What had begun when it died fails; had nobody heard of it yet, it is sent again, and there its device lives on.
    assert "Internal server error" in dying[1] or dying == (100, "")
    assert other == (300, "") and later == (5, "")
    until(lambda: "engine 0 ended (status 70); 1 of 2 serve on" in server.log.read_text(), "the log says it")
    assert "the emulated device dies on request" in server.log.read_text()
    assert list(server.until_idle()) == [1]
    assert server.health() == 200


def test_interrupted_it_ends_and_leaves_no_process(server):
    assert len(server.processes()) >= 2
    server.stop(signal.SIGINT)
    assert server.processes() == []
