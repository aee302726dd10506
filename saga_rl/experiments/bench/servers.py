"""One vLLM server as a process: its command line, its start, another policy while it serves, and an empty cache."""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.experiments.bench.arms import INFINITE, LAZY_TIER, OURS, ROUTED, Arm
from saga_rl.experiments.bench.settings import Settings
from saga_rl.processes import SERVE, Child
from saga_rl.runtime.launch.lazy_offload import transfer_config

NICE = ("nice", "-n", "5")
"""A client that is late on a busy machine shortens nobody's tools, so engines yield to it."""
MODEL = "bench"
KEY = secrets.token_hex(8)
"""The API key of all servers: without one no policy is changed in service."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_SERVER_DEV_MODE": "1",  # POST /reset_prefix_cache
    # Or a client that was late reuses a connection that the server is closing.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
}
EMULATED = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
LEAN = ["--skip-tokenizer-init", "--stream-interval", "100"]
"""Of emulated servers: a replay speaks in token ids and looks at first tokens and ends, and the text of a prompt costs
the server as much time as all the rest of a request."""
START_S = 900.0
EMPTY_S = 60.0
OFFLOAD = "saga_rl.runtime.engine.offload.cache_policy"


@dataclass(frozen=True)
class Need:
    """What has to run for an arm. servers: so many, each of `engines` engines; tier_bytes: CPU memory of one engine."""

    name: str
    servers: int
    engines: int
    pool: int | None
    tier_bytes: int
    policy: str
    lazy: bool = False


def need(s: Settings, arm: Arm, pool: int | None, whole: int, token_bytes: float) -> Need:
    """The servers of an arm. pool: KV tokens of one engine; whole: a pool that holds everything."""
    apart = arm.host == ROUTED
    tier = 0 if arm.never_tiered else round(s.cpu_tokens * token_bytes)
    return Need(arm.host, s.engines if apart else 1, 1 if apart else s.engines,
                whole if arm.name == INFINITE else pool, tier, arm.policy, s.lazy and arm.host == OURS)


def flags(s: Settings, n: Need, window: int | None, port: int) -> list[str]:
    """The command line after MODEL: the same for all arms but for what the arm is. The user's flags come last."""
    out = ["--policy", n.policy]
    if n.name in (OURS, INFINITE):
        out += ["--expiry-s", f"{s.expiry_s:g}"]
        # Keys would name the tenant else; and a checkpoint of an arm may lie anywhere.
        settings = {"saga": {"policy_root": "/"}, "saga_http": {"tenant_in_body": True}}
        out += ["--additional-config", json.dumps(settings)]
    if s.emulate is not None:
        out += ["--emulate", s.emulate, "--time-scale", f"{s.time_scale:g}"]
        out += ["--kv-tokens", str(n.pool)] if n.pool is not None else []
        out += LEAN
    elif n.pool is not None:  # vLLM keeps one block for itself
        out += ["--num-gpu-blocks-override", str(n.pool // s.block_tokens + 1)]
    out += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL, "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log"]
    out += ["--max-model-len", str(window)] if window is not None else []
    if n.engines > 1:
        out += ["--data-parallel-size", str(n.engines), "--api-server-count", "1"]
    if n.name == "priority":
        out += ["--scheduling-policy", "priority"]
    return [*out, *_tier(n), *s.flags]


def _tier(n: Need) -> list[str]:
    """vLLM's flags for the CPU tier; under our policies it evicts by the policy, too."""
    if not n.tier_bytes:
        return []
    if n.name == OURS and n.lazy:
        return ["--kv-transfer-config", transfer_config(n.tier_bytes)]
    if n.name == LAZY_TIER:
        lazy = {"cpu_bytes_to_use": n.tier_bytes, "lazy_offload": True}
        return ["--kv-transfer-config", json.dumps({"kv_connector": "SimpleCPUOffloadConnector", "kv_role": "kv_both",
                                                    "kv_connector_extra_config": lazy})]
    if n.name == OURS:
        extra = {"cpu_bytes_to_use": n.tier_bytes, "eviction_policy": "SagaCachePolicy",
                 "cache_policy_module_path": OFFLOAD}
        return ["--kv-transfer-config", json.dumps({"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
                                                    "kv_connector_extra_config": extra})]
    return ["--kv-offloading-size", f"{n.tier_bytes / (1 << 30):.6f}"]


class Server(Child):
    """`saga-rl serve` in the background, with an end of its own for everything that it started."""

    def __init__(self, name: str, model: str, words: Sequence[str], port: int, log: Path, policy: str = "stock",
                 env: Mapping[str, str] | None = None) -> None:
        """words: the command line after the model."""
        self.url, self.policy = f"http://127.0.0.1:{port}", policy
        self.idle_since = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(f"server {name}", [*NICE, *SERVE, model, *words], log,
                         {**ENVIRONMENT, **(env or {}), "VLLM_API_KEY": KEY, "SAGA_RL_ADMIN_KEY": KEY})

    def broken(self, cause: str) -> UserError:
        """What went wrong, with the last lines of the log."""
        return broken(self, cause)

    def ready(self, tick: Callable[[], None] = lambda: None) -> None:
        """Return when /health answers. Raises `UserError` if the server ends or takes too long."""
        wait_for(self, f"{self.url}/health", START_S, tick)
        self.idle_since = time.monotonic()

    def become(self, policy: str) -> None:
        """Serve with another policy from now on. Raises `UserError` if the server does not."""
        if policy == self.policy:
            return
        try:
            self._post("/saga/policy", json.dumps({"policy": policy}).encode())
        except (urllib.error.URLError, OSError) as e:
            raise self.broken(f"does not change to policy {policy} ({e})") from None
        self.policy = policy

    def _post(self, path: str, data: bytes) -> Any:
        ask = urllib.request.Request(f"{self.url}{path}", data=data, method="POST", headers={
            "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})
        with urllib.request.urlopen(ask, timeout=120) as answer:
            return json.load(answer)

    def empty(self, expiry_s: float = 0.0) -> None:
        """Forget the last run: its sessions have expired (real seconds), and no block of theirs can be found, in the
        CPU tier neither. What was learned of tools and agents stays, as in service. Raises `UserError`."""
        time.sleep(max(0.0, self.idle_since + expiry_s - time.monotonic()))
        begin = time.monotonic()
        while time.monotonic() - begin < EMPTY_S:
            try:
                if self._post("/reset_prefix_cache?reset_external=true", b"").get("success"):
                    return
            except (urllib.error.URLError, OSError) as e:
                raise self.broken(f"does not empty its cache ({e})") from None
            time.sleep(0.5)
        raise self.broken("does not empty its cache: blocks are in use")

    def used(self) -> None:
        """Note that a run has just ended here."""
        self.idle_since = time.monotonic()


def broken(child: Child, cause: str) -> UserError:
    """The one message of a process that does not do what it should: cause, mend, and the last lines of its log."""
    tail = child.log.read_text(errors="replace").splitlines()[-12:]
    return UserError(child.name, cause, f"mend what the end of {child.log} says, and give the same command again:\n"
                     + "\n".join(tail))


def wait_for(child: Child, url: str, seconds: float, tick: Callable[[], None] = lambda: None) -> None:
    """Return when `url` answers 200. Raises `UserError` if the process ends before, or it takes too long."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if child.process.poll() is not None:
            raise broken(child, f"ended with status {child.process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        tick()
        time.sleep(0.3)
    raise broken(child, f"was not ready after {seconds:.0f} s")


