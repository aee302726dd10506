"""Where a command's work is done, by its options `--jobs` and `--ray`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_rl.experiments.pool import Jobs


@contextmanager
def place(jobs: int, address: str, out: Path) -> Iterator[Jobs]:
    """`jobs` processes here, or, where an address is given, the Ray cluster there, for a command that writes to `out`.
    Raises `UserError` for a cluster that cannot be used; nothing is written then."""
    if not address:
        yield jobs
        return
    from saga_rl.experiments.ray_pool import cluster

    with cluster(address, out) as found:
        yield found
