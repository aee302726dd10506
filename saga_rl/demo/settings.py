"""Every number of the demo in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the demo does; sized for two cores and five minutes."""

    folder: Path = Path("runs/demo")
    trace: Path | None = None
    """A trace or a native file to start from instead of a generated workload."""
    importer: str | None = None
    """The format of `trace` if it is not a Trace."""
    seed: int = 1

    # The generated workload.
    workload: str = "webarena"
    generated: int = 200

    # Which sessions are taken, of any source.
    steps: tuple[int, int] = (4, 16)
    longest_wait_s: float = 300.0
    """Sessions whose tools and users take longer in all are left out: the demo would wait for them."""
    fewest: int = 12
    """Sessions in each of the three parts, at least."""

    # The emulated cluster: H100s with an 8B model, half of each pool's KV, so that sessions have to share it.
    profile: str = "h100-llama3.1-8b-tp1"
    engines: int = 2
    kv_tokens: int = 240_000
    window: int = 131_072
    time_scale: float = 8.0
    """Seconds of the devices in one real second."""
    alive: int = 16
    served: int = 18
    """Sessions served by each arm."""
    expiry_s: float = 60.0
    """Silence that counts as a session's end, seconds of the devices: 300 in service, shorter here as all else."""

    # The search on training sessions, in the simulator.
    generations: int = 6
    episode_sessions: int = 24

    def at(self, name: str) -> Path:
        return self.folder / name
