"""An app of Ray Serve LLM on emulated devices, from the file that the documentation gives: `RayApp`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from live_kit import ENV, LIMIT_S, START_S, free_port, profile, until

from saga_rl.replay.tiny_model import build_tiny_model
from saga_rl.runtime.config.emulated import Settings
from saga_rl.runtime.config.settings import SagaConfig
from saga_rl.runtime.ray.serve_file import completed

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "ray_emulated.yaml"
DRIVER = """
import json, pathlib, signal, sys
import ray
from ray import serve
from ray.serve.llm import build_openai_app

port, ready, args = int(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=True)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build_openai_app(args), name="agents", route_prefix="/")
ready.touch()
signal.sigwait([signal.SIGTERM])
serve.shutdown()
ray.shutdown()
"""
"""What `serve run` does with the file's `args`, on a Ray of the test's own that nobody else's can meet."""
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "600", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "600",
           "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_worker_niceness": "0"}
"""Ray replaces a proxy that does not answer within 5 or 10 s, which on a busy machine is all of them."""


def example_args() -> dict[str, Any]:
    """`args` of the only application in the documentation's file."""
    (app,) = yaml.safe_load(EXAMPLE.read_text())["applications"]
    assert app["import_path"] == "ray.serve.llm:build_openai_app"
    return app["args"]


def bare_args() -> dict[str, Any]:
    """The same with nothing of ours in it: what `saga-rl serve --ray` is given."""
    args = example_args()
    (model,) = args["llm_configs"]
    del model["engine_kwargs"]["scheduler_cls"], model["engine_kwargs"]["additional_config"]
    del model["deployment_config"]["request_router_config"], model["runtime_env"]
    return args


class RayApp:
    """Ray, the app and its replicas, with a tiny model and a device whose steps take `step_s`; `stop` ends all."""

    def __init__(self, folder: Path, *, step_s: float = 0.005, window: int = 4096, blocks: int = 1024) -> None:
        self.port, self.log, self.ready = free_port(), folder / "log", folder / "ready"
        folder.mkdir(parents=True, exist_ok=True)
        # Ray's sockets lie below it, and the path of a socket may have 107 characters
        self.scratch = Path(tempfile.mkdtemp(prefix="saga-ray-", dir="/tmp"))
        content = {"applications": [{"args": bare_args()}]}
        args = completed(content, "bare", SagaConfig(policy="likely"), Settings("h100-llama3.1-8b-tp1"))[
            "applications"][0]["args"]
        (config,) = args["llm_configs"]
        config["model_loading_config"] = {"model_id": "tiny", "model_source": str(
            build_tiny_model(folder / "model", layers=1, hidden=64, max_len=window))}
        config["engine_kwargs"] |= {"max_model_len": window, "enable_prompt_tokens_details": True}
        config["runtime_env"]["env_vars"]["SAGA_RL_EMULATE"] = Settings(
            str(profile(folder, step_s)), kv_tokens=blocks * 16).value()
        config["deployment_config"] |= {"health_check_timeout_s": 600}
        router = config["deployment_config"]["request_router_config"]["request_router_kwargs"]
        router["saga"] |= {"metrics": str(folder / "numbers")}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(self.port), str(self.ready), json.dumps(args)], stdout=out,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**ENV, **PATIENT, "RAY_TMPDIR": str(self.scratch)})
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=LIMIT_S)

    def wait(self) -> None:
        """Return when all replicas serve."""
        def up() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            return self.ready.exists()

        until(up, f"the app starts: {self.log}", START_S)

    def complete(self, prompt: str, tokens: int = 4, **more: Any) -> dict[str, Any]:
        r = self.http.post("/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": tokens,
                                                    "temperature": 0, "ignore_eos": True, **more})
        assert r.status_code == 200, r.text
        return r.json()

    def routers(self) -> list[dict[str, Any]]:
        """What our routers count, one for each process that calls the deployment."""
        return [json.loads(p.read_text()) for p in (self.log.parent / "numbers").glob("ray-router-*.json")]

    def stop(self) -> None:
        """End it; whatever does not end in time is killed."""
        self.http.close()
        below = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(LIMIT_S)
            psutil.wait_procs(below, timeout=30)
        finally:
            for p in [*below, *_session(self.process.pid)]:
                if p.is_running():
                    p.kill()
            shutil.rmtree(self.scratch, ignore_errors=True)


def _session(leader: int) -> list[psutil.Process]:
    """Processes of the session that `leader` began."""
    out = []
    for p in psutil.process_iter():
        try:
            if os.getsid(p.pid) == leader:
                out.append(p)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return out
