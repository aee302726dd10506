"""Where work is done beside this process: spawned processes, of which none outlives the program that started it, or a
cluster (`place` finds one). Both are an `Executor` that is handed functions by `submit`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

from saga_rl.aeg.generators import generate
from saga_rl.errors import UserError


class Place(Protocol):
    """What has workers of its own, such as a cluster."""

    def workers(self, begin: Callable[..., None] | None, arguments: tuple[Any, ...]
                ) -> AbstractContextManager[Executor]:
        """As the function `workers`."""


Jobs = int | Place
"""So many processes of this machine, or another place."""


def scratch_parent(jobs: Jobs, out: Path) -> Path | None:
    """Where a temporary folder may lie that all workers see; None: the system's own place."""
    return None if isinstance(jobs, int) else out.absolute().parent


def begin_worker(quiet: bool = False, begin: Callable[..., None] | None = None, *arguments: Any) -> None:
    """In a fresh worker: Ctrl-C is the parent's business, its death is ours. Then `begin` is called."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if quiet:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the life of the process

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin(*arguments)


@contextmanager
def workers(jobs: Jobs, begin: Callable[..., None] | None = None, *arguments: Any) -> Iterator[Executor]:
    """`jobs` processes, or what another place has. On an error, and on Ctrl-C, what they are at is ended at once.

    begin: a module-level function that each calls with `arguments` before its first work."""
    if not isinstance(jobs, int):
        with jobs.workers(begin, arguments) as executor:
            yield executor
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=begin_worker,
                               initargs=(True, begin, *arguments))
    with ended_at_once(pool):
        yield pool
    pool.shutdown()


@contextmanager
def ended_at_once(pool: ProcessPoolExecutor) -> Iterator[None]:
    """On an error, and on Ctrl-C, the processes of `pool` are killed: nobody waits for what they were at."""
    try:
        yield
    except BaseException:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        raise


def warm(open_loop: bool = True) -> None:
    """Compile, or load from disk, what cells run, replays in open loop among it or not. One worker does it before the
    others start, so that it is compiled once and not by all of them side by side."""
    from saga_rl.policies.presets import preset
    from saga_rl.sim.cluster import simulate
    from saga_rl.sim.config import SimConfig
    from saga_rl.sim.openloop.bound import bound

    trace = generate("webarena", 0, sessions=2, max_context=20_000)
    simulate(trace, SimConfig(workers=2, kv_tokens=40_000), preset("saga+"))
    if open_loop:
        bound(trace, SimConfig(kv_tokens=40_000), ["lru", "wa-lru"])


def submit(pool: Executor, what: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run `what`, a module-level function, in a worker; ask `result` for what it gave."""
    return pool.submit(guarded, what, *arguments)


def guarded(what: Callable[..., Any], *arguments: Any) -> tuple[Any, tuple[str, str, str] | None]:
    """In a worker: what it gave, and None; or None and the parts of the `UserError` that it raised."""
    try:
        return what(*arguments), None
    except UserError as e:
        return None, (e.where, e.cause, e.mend)


def result(future: Future[Any]) -> Any:
    """Raises what was raised there; `UserError` if a worker was killed (as when memory ran out)."""
    try:
        value, error = future.result()
    except BrokenProcessPool:
        raise UserError("a worker process", "was killed from outside, most likely because memory ran out",
                        "run again with fewer --jobs; finished cells are kept") from None
    if error:
        raise UserError(*error)
    return value
