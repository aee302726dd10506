"""The loop closes: a server records, its journals become a trace, a checkpoint is trained on that, judged on sessions
that training did not see, and serves. Step by step what docs/how-to/learn.md tells a user to do.

The one test that serves a real model, small and random, on vLLM's CPU build: all others stand on emulated devices.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_kit import Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.split import split
from saga_rl.learn.data.dataset import read_dataset
from saga_rl.policies.learned.checkpoint import load_checkpoint
from saga_rl.policies.presets import preset
from saga_rl.replay.tiny_model import build_tiny_model
from saga_rl.runtime.recording.merge import merge
from saga_rl.runtime.recording.recorder import journal_folder

assert vllm is not None
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SESSIONS, STEPS = 30, 4
TOOLS = ("bash", "edit", "search")
SECRET = "violet-giraffe"
ENV = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
       "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"loop_{name}", ROOT / "training" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def agents(url: str, model: str) -> list[int]:
    """Sessions whose contexts grow, six at a time, each step with the tool that ran before it."""
    import httpx

    places, statuses = asyncio.Semaphore(6), []

    async def one(client: httpx.AsyncClient, i: int) -> None:
        async with places:
            text = f"task {i} about the {SECRET} " * 6
            for k in range(STEPS):
                hints: dict[str, Any] = {"saga_final": int(k == STEPS - 1), "saga_agent_type": "coder"}
                if k:
                    hints["saga_tool"] = TOOLS[(i + k) % 3]
                r = await client.post(f"{url}/v1/completions", timeout=300, json={
                    "model": model, "prompt": text, "max_tokens": 6, "temperature": 0, "ignore_eos": True,
                    "session_id": f"s{i}", "vllm_xargs": hints})
                statuses.append(r.status_code)
                text += r.json()["choices"][0]["text"] + " and the tool says something more " * 16
                await asyncio.sleep(0.02 * (i % 3))

    async with httpx.AsyncClient() as client:
        await asyncio.gather(*(one(client, i) for i in range(SESSIONS)))
    return statuses


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journals of a server that was killed after it had served: nobody merged them for us."""
    import httpx

    folder = tmp_path_factory.mktemp("loop")
    model = build_tiny_model(folder / "model", layers=2, max_len=1024)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, str(Path(sys.executable).with_name("saga-rl")), "serve", str(model), "--policy", "saga+",
             "--record", str(folder / "served.parquet"), "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
             "--max-model-len", "1024", "--max-num-seqs", "6", "--block-size", "32", "--dtype", "float32",
             "--num-gpu-blocks-override", "60"], env=ENV, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        assert asyncio.run(agents(url, str(model))) == [200] * SESSIONS * STEPS
        journal, end = journal_folder(folder / "served.parquet"), time.monotonic() + 300
        while sum(max(p.read_text().count("\n") - 1, 0) for p in journal.iterdir()) < SESSIONS * STEPS:
            assert time.monotonic() < end, "what was served is never written"
            time.sleep(0.2)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    return folder


def test_serve_trace_train_serve(recorded: Path) -> None:
    journal = journal_folder(recorded / "served.parquet")
    text = "".join(p.read_text() for p in journal.iterdir())
    assert SECRET not in text and "violet" not in text

    # trace
    merge(journal, recorded / "served.parquet")
    trace = read_trace(recorded / "served.parquet")
    assert (trace.n_sessions, trace.n_steps) == (SESSIONS, SESSIONS * STEPS)
    assert sorted(trace.tools) == sorted(TOOLS)
    later = trace.steps.prefix_step >= 0
    assert later.sum() == SESSIONS * (STEPS - 1)
    parts = split(trace, {"train": 0.7, "test": 0.3}, 0)
    seen, held_out = (set(parts[p].sessions.session_id) for p in ("train", "test"))
    assert seen and held_out and seen.isdisjoint(held_out)
    for name, part in parts.items():
        write_trace(part, recorded / f"{name}.parquet")

    # train, on the first part only
    kv = str(int(3.0 * (trace.steps.prompt_tokens + trace.steps.output_tokens).max()))
    script("collect").main([recorded / "train.parquet"], recorded / "decisions-v0", behaviour="lru,belady", epsilon=0.2,
                           max_rows=8, jobs=1, episodes=3, population=6, kv_tokens=kv)
    assert len(read_dataset(recorded / "decisions-v0")) > 50
    script("train_offline").main(recorded / "decisions-v0", recorded / "policy", epochs=5, batch=32, hidden="8",
                                 validation=0.34, wandb="disabled")
    checkpoint = load_checkpoint(recorded / "policy")
    # How well it learns from a hundred steps differs from one recording to the next: the loop is what is tested here.
    assert 0.0 <= checkpoint.meta["figures"]["pair_accuracy"] <= 1.0

    # judge, on the other
    script("evaluate").main(recorded / "policy", recorded / "test.parquet", recorded / "judged", kv_tokens=kv,
                            population=4, seeds=1, open_seeds=1)
    judged = json.loads((recorded / "judged" / "evaluation.json").read_text())
    assert judged["checkpoint"]["sha256"] == checkpoint.sha256

    # serve: in place of what serves, without a restart
    clock = Clock()
    s = make_scheduler(SagaSyncScheduler, recorded / "kit", clock=clock, blocks=40, saga={"policy": "saga+"})
    rng = np.random.default_rng(0)
    context = {i: rng.integers(5, 300, 120).tolist() for i in range(6)}
    for k in range(4):
        for i, tokens in context.items():
            s.add_request(make_request(f"{i}-{k}", tokens, session=f"s{i}", tool="bash" if k else None))
            context[i] = [*tokens, *[7] * 4, *rng.integers(5, 300, 20).tolist()]
        if k == 1:
            step(s)  # in the middle of requests
            s.swap(preset(str(recorded / "policy")), "mine")
        drain(s, clock)
        clock.now += 2.0
    assert (s.policies.eviction.name, s.shown) == ("learned", "mine")
    assert s.policies.eviction.doc["sha256"] == checkpoint.sha256
    after = s.metrics.snapshot()
    assert after["evicted/idle"] > 0
    assert not [k for k in after if k.startswith("failed/")]
    s.shutdown()
