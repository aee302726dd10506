"""`saga-rl serve` as a user runs it: two real engines, sessions, a recording; and everything a user can get wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saga_rl.aeg.io import read_trace
from saga_rl.runtime.tiny_model import build_tiny_model

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

START_S = 600.0
"""Two engines are up in about a minute on an idle machine, in many on a busy one."""
ENV = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
       "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
CHECKPOINT = str(Path(__file__).resolve().parents[1] / "checkpoints" / "eviction")
RUN = [sys.executable, str(Path(sys.executable).with_name("saga-rl"))]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), layers=2, max_len=1024)


class Server:
    """A server process; `stop` ends it as an operator would."""

    def __init__(self, model: Path, log: Path, *flags: str) -> None:
        self.port, self.model, self.log = free_port(), str(model), log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*RUN, "serve", self.model, "--port", str(self.port), "--host", "127.0.0.1", "--enforce-eager",
                 "--max-model-len", "1024", "--max-num-seqs", "8", "--block-size", "32", "--dtype", "float32",
                 "--num-gpu-blocks-override", "40", *flags],
                env=ENV, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self) -> None:
        import httpx

        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"not up after {START_S:.0f} s: {self.log.read_text()[-3000:]}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # its engines, too
            raise

    async def sessions(self, n: int, steps: int) -> list[int]:
        """Each session's context grows from step to step; returns the status of every answer."""
        import httpx

        async def one(client: httpx.AsyncClient, i: int) -> list[int]:
            text, statuses = f"session {i} begins " * 10, []
            for k in range(steps):
                hints = {"saga_final": int(k == steps - 1), "saga_tenant": f"tenant-{i % 2}"}
                if k:
                    hints["saga_tool"] = "bash"
                r = await client.post(f"http://127.0.0.1:{self.port}/v1/completions", timeout=120, json={
                    "model": self.model, "prompt": text, "max_tokens": 6, "temperature": 0, "ignore_eos": True,
                    "session_id": f"s{i}", "vllm_xargs": hints})
                statuses.append(r.status_code)
                text += r.json()["choices"][0]["text"] + " the tool answers something else " * 16
                await asyncio.sleep(0.05)
            return statuses

        async with httpx.AsyncClient() as client:
            answers = await asyncio.gather(*(one(client, i) for i in range(n)))
        return [status for a in answers for status in a]


@pytest.mark.vllm
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("policy", "parts"), [
    ("lru", "eviction lru, placement sticky, ordering fcfs, admission none"),
    ("saga", "eviction wa-lru, placement saga, ordering afs, admission none"),
    (CHECKPOINT, "eviction learned, placement saga, ordering session-fcfs, admission reserve-older"),
], ids=["lru", "saga", "checkpoint"])
def test_two_engines_serve_sessions_each_stays_on_its_engine_and_all_is_recorded(model, tmp_path, policy, parts):
    record, numbers = tmp_path / "served.parquet", tmp_path / "numbers"
    server = Server(model, tmp_path / "log", "--policy", policy, "--record", str(record), "--metrics", str(numbers),
                    "-dp", "2")
    try:
        server.wait()
        assert asyncio.run(server.sessions(8, 4)) == [200] * 32
        time.sleep(2.5)  # journals and counters are handed over every second
        engines = [json.loads((numbers / f"engine-{e}.json").read_text()) for e in (0, 1)]
        router = json.loads((numbers / "router.json").read_text())
        journals = sorted((tmp_path / "served.parquet.journal").iterdir())
        seen = [{json.loads(line).get("session") for line in p.read_text().splitlines()[1:]} for p in journals]
    finally:
        code = server.stop()
    log = server.log.read_text()
    assert code in (0, -signal.SIGTERM), log[-3000:]
    assert f"saga-rl: policy {policy} ({parts}" in log
    assert router["placements"] == sum(e["requests"] for e in engines) == 32
    assert router["migrations"] == 0
    # A busy machine may cost a decision its time budget; nothing else may make the router fall back.
    assert [k for k in router if k.startswith("fallback") and "budget" not in k] == []
    assert all(e["requests"] >= 4 for e in engines)
    assert sum(e.get("evicted/idle", 0) + e.get("evicted/ended", 0) for e in engines) > 0
    assert seen[0].isdisjoint(seen[1])
    assert seen[0] | seen[1] == {f"s{i}" for i in range(8)}
    t = read_trace(record)
    assert (t.n_sessions, t.n_steps) == (8, 32)
    assert sorted(t.sessions.session_id) == [f"s{i}" for i in range(8)]
    assert t.tools == ["bash"]
    later = t.steps.prefix_step >= 0
    assert later.sum() == 24
    assert (t.steps.prefix_tokens[later] >= 32).all()
    assert (t.steps.cached_tokens[later] > 0).any()
    assert t.meta.notes["engines"] == 2


def run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([*RUN, "serve", *flags], env=ENV, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("flags", "message"), [
    (["M", "--policy", "sage"], "there is no policy named 'sage'; choose one of: saga, saga+"),
    (["--port", "1", "M"], "got the flag --port where the model should stand"),
    (["M", "--policy", "stock", "--record", "x.parquet"], "needs our scheduler"),
    (["M", "--record", "no/such/folder/x.parquet"], "does not exist"),
    (["M", "--expiry-s", "-1"], "expiry_s: is -1"),
])
def test_what_is_wrong_is_told_in_one_line_before_vllm_is_loaded(flags, message, monkeypatch):
    monkeypatch.setitem(ENV, "VLLM_PLUGINS", "saga_rl")
    done = run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0


@pytest.mark.vllm
def test_a_port_in_use_is_refused_before_a_model_is_loaded(model):
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
