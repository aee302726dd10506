"""`saga-rl serve` as a user runs it: two engines, sessions, a recording, policies; and what a user can get wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_kit import ENV, SAGA, Server, until

from saga_rl.aeg.io import read_trace
from saga_rl.errors import UserError
from saga_rl.replay.tiny_model import build_tiny_model

CHECKPOINT = str(Path(__file__).resolve().parents[1] / "checkpoints" / "eviction")
SESSIONS, STEPS = 8, 4
KEY = "sesame"


async def sessions(server: Server, name: str) -> list[int]:
    """Each session's context grows from step to step; returns the status of every answer."""
    async def one(client: httpx.AsyncClient, i: int) -> list[int]:
        text, statuses = f"session {name}{i} begins " * 10, []
        for k in range(STEPS):
            hints: dict[str, Any] = {"saga_final": int(k == STEPS - 1), "saga_tenant": f"tenant-{i % 2}",
                                     "saga_answer": " an answer that the test has written "}
            if k:
                hints["saga_tool"] = "bash"
            r = await client.post(f"{server.url}/v1/completions", timeout=600, headers=server.headers, json={
                "model": "tiny", "prompt": text, "max_tokens": 6, "temperature": 0, "ignore_eos": True,
                "session_id": f"{name}{i}", "vllm_xargs": hints})
            statuses.append(r.status_code)
            text += r.json()["choices"][0]["text"] + " the tool answers something else " * 16
            await asyncio.sleep(0.05)
        return statuses

    async with httpx.AsyncClient() as client:
        answers = await asyncio.gather(*(one(client, i) for i in range(SESSIONS)))
    return [status for a in answers for status in a]


def own(names: Any) -> list[str]:
    """Sessions without the tenant before them, which is that of the server's key."""
    return [name.rpartition("/")[2] for name in names]


@pytest.mark.emulated
@pytest.mark.timeout(2400)
def test_two_engines_serve_sessions_each_stays_on_its_engine_and_all_is_recorded(tmp_path):
    """Under a checkpoint, and then, told so while it serves, under `saga` and `lru`."""
    record, numbers = tmp_path / "served.parquet", tmp_path / "numbers"
    rounds = {
        CHECKPOINT: "eviction learned, placement saga, ordering session-fcfs, admission reserve-older",
        "saga": "eviction wa-lru, placement saga, ordering afs, admission none",
        "lru": "eviction lru, placement sticky, ordering fcfs, admission none"}
    server = Server(tmp_path, "--policy", CHECKPOINT, "--record", str(record), "--metrics", str(numbers), "-dp", "2",
                    key=KEY, window=1024, blocks=40, seqs=8)
    try:
        server.wait()
        evicted = 0
        for n, (policy, parts) in enumerate(rounds.items()):
            if n:
                assert server.http.post("/saga/policy", json={"policy": policy}).status_code == 200
            assert ", ".join(f"{k} {v}" for k, v in server.status()["policies"].items()) == parts
            assert asyncio.run(sessions(server, "abc"[n])) == [200] * SESSIONS * STEPS
            engines, router = server.until_idle(), server.status()["router"]
            served = SESSIONS * STEPS * (n + 1)
            assert router["placements"] == sum(e["requests"] for e in engines.values()) == served
            assert router["migrations"] == 0
            # A busy machine may cost a decision its time budget; nothing else may make the router fall back.
            assert [k for k in router if k.startswith("fallback") and "budget" not in k] == []
            now = sum(e.get("evicted/idle", 0) + e.get("evicted/ended", 0) for e in engines.values())
            assert now > evicted
            evicted = now
        assert all(e["requests"] >= STEPS for e in engines.values())
        for rank, engine in engines.items():  # the files say what the engines say, a second later
            server.numbers(f"engine-{rank}", lambda have, e=engine: have.get("requests") == e["requests"])
        server.numbers("router", lambda have: have.get("placements") == served)
        journals = sorted((tmp_path / "served.parquet.journal").iterdir())

        def noted() -> list[list[str]] | None:
            lines = [[json.loads(line).get("session") for line in p.read_text().splitlines()[1:]] for p in journals]
            return lines if sum(map(len, lines)) >= served else None

        seen = [set(lines) for lines in until(noted, "every request is in the journals")]
    finally:
        code = server.stop()
    log = server.log.read_text()
    assert code in (0, -signal.SIGTERM), log[-3000:]
    assert f"saga-rl: policy {CHECKPOINT} ({rounds[CHECKPOINT]}" in log
    names = sorted(f"{name}{i}" for name in "abc" for i in range(SESSIONS))
    assert seen[0].isdisjoint(seen[1])
    assert sorted(own(seen[0] | seen[1])) == names
    t = read_trace(record)
    assert (t.n_sessions, t.n_steps) == (3 * SESSIONS, served)
    assert sorted(own(t.sessions.session_id)) == names
    assert t.tools == ["bash"]
    later = t.steps.prefix_step >= 0
    assert later.sum() == 3 * SESSIONS * (STEPS - 1)
    assert (t.steps.prefix_tokens[later] >= 32).all()
    assert (t.steps.cached_tokens[later] > 0).any()
    assert t.meta.notes["engines"] == 2


def run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([*SAGA, "serve", *flags], env=ENV, capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.parametrize(("flags", "message"), [
    (["M", "--policy", "sage"], "there is no policy named 'sage'; choose one of: saga, saga+"),
    (["--port", "1", "M"], "got the flag --port where the model should stand"),
    (["M", "--policy", "stock", "--record", "x.parquet"], "needs our scheduler"),
    (["M", "--record", "no/such/folder/x.parquet"], "does not exist"),
    (["M", "--expiry-s", "-1"], "expiry_s: is -1"),
    (["/nope/mine"], "/nope/mine: does not exist; name a model's folder"),
    (["./nope", "--policy", "stock"], "./nope: does not exist"),
])
def test_what_is_wrong_is_told_in_one_line_before_vllm_is_loaded(flags, message, monkeypatch):
    monkeypatch.setitem(ENV, "VLLM_PLUGINS", "saga_rl")
    done = run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_a_build_for_gpus_without_one_is_told_in_one_line(monkeypatch):
    import vllm.platforms.interface

    from saga_rl.runtime.launch import serve

    monkeypatch.setattr(vllm.platforms, "_current_platform", vllm.platforms.interface.UnspecifiedPlatform())
    with pytest.raises(UserError, match="no GPU on this machine"):
        serve._check_device()


def test_a_port_in_use_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(ENV, "SAGA_RL_EMULATE", "h100-llama3.1-8b-tp1")  # a CUDA wheel reads no flags without a device
    model = build_tiny_model(tmp_path / "model", layers=1, hidden=64, max_len=1024)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(1)
        port = str(s.getsockname()[1])
        done = run(str(model), "--host", "127.0.0.1", "--port", port)
        assert (done.returncode, f"port {port}: is in use" in done.stderr) == (2, True), done.stderr


def test_a_list_of_plugins_that_leaves_ours_out_is_refused(monkeypatch):
    monkeypatch.setitem(ENV, "VLLM_PLUGINS", "another")
    done = run("M")
    assert done.returncode == 2
    assert done.stderr == "error: VLLM_PLUGINS: is 'another' and leaves saga_rl out; add saga_rl to it, or unset it\n"


def test_journals_of_an_earlier_run_are_not_written_over(tmp_path):
    folder = tmp_path / "x.parquet.journal"
    folder.mkdir()
    (folder / "engine-0-1.jsonl").write_text("{}\n")
    done = run("M", "--record", str(tmp_path / "x.parquet"))
    assert done.returncode == 2
    assert "holds journals of an earlier run; run `saga-rl merge-recording" in done.stderr
