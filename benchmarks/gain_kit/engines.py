"""Servers of the arms: started one after the other, kept up between repeats, made empty between runs.

A server with two engines takes 3 GiB, so arms that differ only in our policy share one, which is told to change."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gain_kit.settings import ARMS, STOCK, Setup
from saga_rl.demo.server import COMMAND
from saga_rl.demo.settings import free_port
from saga_rl.demo.stages import Child

MODEL = "tiny"
NICE = ("nice", "-n", "5")
"""On two cores engines would make the client late, and a late client shortens nobody's tools."""
KEY = "measured"
"""The API key of all servers: without one no policy is changed in service."""
OURS = "ours"
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    # vLLM would bind the threads of both engines to the same core: it knows of one engine a NUMA node.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # POST /reset_prefix_cache
    # Or a client that was late reuses a connection that the server is closing.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
}
START_S = 900.0
EMPTY_S = 30.0


def host(setup: Setup, arm: str) -> str:
    """The server that plays `arm`: one of its own, or the one that all arms of our policies share."""
    return arm if ARMS[arm].whole or setup.policy(arm) == STOCK else OURS


def flags(setup: Setup, arm: str, pool_tokens: int, port: int) -> list[str]:
    """The command line after MODEL: the same for all arms, but for the policy, the queue and the pool."""
    one = ARMS[arm]
    policy = setup.policy(arm)
    out = ["--policy", policy] if isinstance(policy, str) else []
    if policy != STOCK:
        more: dict[str, Any] = {"saga_http": {"tenant_in_body": True}}  # keys would name the tenant else
        more |= {} if isinstance(policy, str) else {"saga": {"policy": policy}}
        out += ["--expiry-s", f"{setup.expiry_s:g}", "--additional-config", json.dumps(more)]
    out += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL, "--dtype", setup.dtype,
            *(["--enforce-eager"] if setup.eager else []), "--block-size", str(setup.block_tokens),
            # vLLM keeps one block for itself
            "--num-gpu-blocks-override", str(pool_tokens // setup.block_tokens + 1),
            "--max-model-len", str(setup.model_len), "--max-num-seqs", str(setup.max_num_seqs),
            "--max-num-batched-tokens", str(setup.max_batched_tokens), "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log"]
    if setup.engines > 1:
        out += ["--data-parallel-size", str(setup.engines), "--api-server-count", "1"]
    if one.priority:
        out += ["--scheduling-policy", "priority"]
    return out


class Server(Child):
    """`saga-rl serve` in the background, with an end of its own for everything it started. `ready` waits for it."""

    def __init__(self, setup: Setup, arm: str, model: Path, pool_tokens: int, log: Path, env: dict[str, str],
                 extra: tuple[str, ...] = ()) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.idle_since = time.monotonic()
        command = [*NICE, *COMMAND, str(model), *flags(setup, arm, pool_tokens, port), *extra]
        super().__init__(f"server {host(setup, arm)}", command, log, env | {"VLLM_API_KEY": KEY})
        self.policy = setup.policy(arm)

    def ready(self, tick: Callable[[], None] = lambda: None) -> None:
        """Return when /health answers. Raises `StageFailed` if the server ends or takes too long."""
        begin = time.monotonic()
        while time.monotonic() - begin < START_S:
            if self.process.poll() is not None:
                raise self.failure(f"ended with status {self.process.returncode} before it was ready")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        self.idle_since = time.monotonic()
                        return
            except (urllib.error.URLError, OSError):
                pass
            tick()
            time.sleep(0.3)
        raise self.failure(f"was not ready after {START_S:.0f} s")

    def become(self, policy: str | dict[str, str]) -> None:
        """Serve with another policy from now on. Raises `StageFailed` if the server does not."""
        if policy == self.policy:
            return
        try:
            self._post("/saga/policy", json.dumps({"policy": policy}).encode())
        except (urllib.error.URLError, OSError) as e:
            raise self.failure(f"does not change to policy {policy} ({e})") from None
        self.policy = policy

    def _post(self, path: str, data: bytes) -> Any:
        ask = urllib.request.Request(f"{self.url}{path}", data=data, method="POST", headers={
            "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})
        with urllib.request.urlopen(ask, timeout=60) as answer:
            return json.load(answer)

    def empty(self, expiry_s: float) -> None:
        """Forget the last run: its sessions have expired, and no block of theirs can be found. What was learned of
        tools and agents stays, as in service. Raises `StageFailed` if the server does not do it."""
        time.sleep(max(0.0, self.idle_since + expiry_s + 1.0 - time.monotonic()))
        begin = time.monotonic()
        while time.monotonic() - begin < EMPTY_S:
            try:
                if self._post("/reset_prefix_cache", b"").get("success"):
                    return
            except (urllib.error.URLError, OSError) as e:
                raise self.failure(f"does not empty its cache ({e})") from None
            time.sleep(0.5)
        raise self.failure("does not empty its cache: blocks are in use")

    def used(self) -> None:
        """A run has just ended here."""
        self.idle_since = time.monotonic()
