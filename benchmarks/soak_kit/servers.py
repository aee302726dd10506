"""The servers of a soak: `saga-rl serve` on emulated devices, invariants walked after each step."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saga_rl.experiments.bench.servers import EMULATED, KEY, Server
from saga_rl.processes import free_port
from saga_rl.runtime.emulate.shapes import PROFILE_OF, write_model
from soak_kit.load import CONTEXT, MODEL

POOL, SHAPE = 24_576, "llama3.1-8b"
LIMIT_S = 600.0
SHIM = Path(__file__).parent / "shim"


def start(name: str, out: Path, *, policy: str, engines: int, servers: int = 1, scale: float = 1.0, pool: int = POOL,
          flags: tuple[str, ...] = (), saga: Mapping[str, Any] = {}, env: Mapping[str, str] = {}) -> Server:
    """A server that has begun to start. saga: of `additional_config`; flags: the last ones. Its log is `out`/log."""
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model"
    if not model.exists():
        write_model(SHAPE, model, CONTEXT)
    port = free_port()
    words = ["--policy", policy, "--emulate", PROFILE_OF[SHAPE], "--time-scale", f"{scale:g}", "--kv-tokens", str(pool),
             "--expiry-s", "60", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL,
             "--disable-uvicorn-access-log", "--api-server-count", str(servers), "--additional-config",
             json.dumps({"saga": {"poll_s": 1.0, **saga}, "saga_http": {"tenant_in_body": True}})]
    words += ["--data-parallel-size", str(engines)] if engines > 1 else []
    return Server(name, str(model), [*words, *flags], port, out / "log", policy,
                  EMULATED | {"SAGA_RL_CHECK": "log", "VLLM_LOGGING_LEVEL": "WARNING"} | dict(env))


def shimmed(folder: Path) -> dict[str, str]:
    """The environment in which all of a server's processes read faults of the machine from `folder`, see `shim`."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH", "")])),
            "SOAK_FAULTS": str(folder.resolve())}


def ask(server: Server, path: str, limit_s: float = 30.0) -> str:
    """The text of one GET."""
    request = urllib.request.Request(f"{server.url}{path}", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=limit_s) as answer:
        return str(answer.read().decode())


def status(server: Server) -> dict[str, Any]:
    """What the server says of its engines, asked anew."""
    return dict(json.loads(ask(server, "/saga/status")))


def until(look: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first true answer of `look`. Raises `TimeoutError`."""
    end = time.monotonic() + limit_s
    while True:
        try:
            if found := look():
                return found
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"it never happened: {what}")
        time.sleep(0.2)


def idle(server: Server) -> list[dict[str, Any]]:
    """The engines that live, once they have no request."""
    def look() -> list[dict[str, Any]] | None:
        engines = status(server)["engines"]
        done = all(e["answers"] and not e["requests/running"] + e["requests/waiting"] for e in engines)
        return engines if engines and done else None

    return list(until(look, "no request is left"))


def losses(engines: list[dict[str, Any]]) -> list[str]:
    """What is not conserved in engines that are idle: blocks still held, invariants that broke."""
    wrong = [f"engine {e['engine']}: {e['kv/running']} blocks held by nobody" for e in engines if e["kv/running"]]
    return wrong + [f"engine {e['engine']}: {k} {v}" for e in engines for k, v in e.items()
                    if k.startswith("invariants")]
