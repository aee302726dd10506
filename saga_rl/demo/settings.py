"""Every number of the demo in one place."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True)
class Settings:
    """What the demo does; sized for two cores and ten minutes."""

    folder: Path = Path("runs/demo")
    trace: Path | None = None
    """A trace or a native file to start from instead of a generated workload."""
    importer: str | None = None
    """The format of `trace` if it is not a Trace."""
    seed: int = 1

    # The generated workload, in its own lengths and times.
    workload: str = "webarena"
    sessions: int = 240
    train_share: float = 0.6

    # Learning, in the simulator.
    population: int = 12
    episode_sessions: int = 36
    pressures: str = "1.3,2"
    evaluate_pressures: str = "1.1,1.4,2"
    epochs: int = 8
    evaluate_seeds: int = 3
    generations: int = 40

    # Two real engines.
    engines: int = 2
    served_sessions: int = 30
    served_steps: int = 520
    """Sessions are taken until one of the two is reached."""
    concurrency: int = 12
    max_context: int = 4096
    """Tokens; lengths are scaled by the factor that brings the longest context there."""
    mean_gap_s: float = 0.4
    """Times are scaled so that tools take that long on average, if they took longer."""
    pressure: float = 1.6
    """KV that live sessions want, over KV that an engine has."""
    block_tokens: int = 32
    """The smallest that vLLM's CPU build takes."""
    max_batched_tokens: int = 2048
    max_num_seqs: int = 32
    start_timeout_s: float = 420.0
    port: int = field(default_factory=free_port)

    @property
    def model_len(self) -> int:
        return self.max_context + 64

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def at(self, name: str) -> Path:
        return self.folder / name
