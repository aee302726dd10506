"""Start and stop `saga-rl serve` with two CPU engines."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from saga_rl.demo.settings import Settings
from saga_rl.demo.stages import Child

# With -c there is no main module that every engine process would import again.
COMMAND = (sys.executable, "-c", "from saga_rl.cli import main; main()", "serve")
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    # vLLM would bind the threads of both engines to the same core: it knows of one engine a NUMA node.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}


class Server(Child):
    """`saga-rl serve --policy ...` in the background; `ready` waits until it answers."""

    def __init__(self, s: Settings, name: str, policy: str, model: Path, kv_tokens: int, log: Path,
                 record: Path | None = None, extra: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        """extra: more flags of ours; env: of the server, beside `ENVIRONMENT`."""
        self.url, self.timeout_s = s.url, s.start_timeout_s
        blocks = kv_tokens // s.block_tokens + 1  # vLLM keeps one block for itself
        flags = ["--port", str(s.port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
                 "--data-parallel-size", str(s.engines), "--api-server-count", "1",
                 "--block-size", str(s.block_tokens), "--num-gpu-blocks-override", str(blocks),
                 "--max-model-len", str(s.model_len), "--max-num-seqs", str(s.max_num_seqs),
                 "--max-num-batched-tokens", str(s.max_batched_tokens), "--served-model-name", "tiny",
                 "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
        saga = ["--policy", policy, *(["--record", str(record)] if record else []), *extra]
        super().__init__(name, [*COMMAND, str(model), *saga, *flags], log, ENVIRONMENT | (env or {}))

    def ready(self, tick: Callable[[], None] = lambda: None) -> None:
        """Return when /health answers. Raises `StageFailed` if the server ends or takes too long."""
        begin = time.monotonic()
        while time.monotonic() - begin < self.timeout_s:
            if self.process.poll() is not None:
                raise self.failure(f"ended with status {self.process.returncode} before it was ready")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            tick()
            time.sleep(0.3)
        raise self.failure(f"was not ready after {self.timeout_s:.0f} s")
