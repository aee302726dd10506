"""A Ray cluster in the place of processes here: the same functions on the same arguments, so the same results.

A task follows from its arguments alone. One whose worker or node dies is run again elsewhere, by Ray, and nobody sees
it. Every node must have the code, the libraries and the files that this machine has: `fit` looks before anything
starts, and every worker looks again before its first task (`ray_worker`), as nodes may come later.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from saga_rl.errors import UserError
from saga_rl.experiments.ray_worker import Here, look, run, stamp

TRIED = "2.60."
"""How the versions of Ray begin with which this was tried."""
RETRIES = 20
"""So often a task may lose its node or its process."""
CONNECT_S, ASK_S, LOOK_S = 5.0, 120.0, 300.0
ASK = ("import json, sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False); "
       "print(json.dumps(ray.available_resources()))")
"""Asked in a process of its own: Ray ends a process whose cluster it cannot reach."""


# ---------------------------------------------------------------------- before anything starts
@contextmanager
def cluster(address: str, out: Path) -> Iterator[Cluster]:
    """The cluster at `address`, for a command that writes to `out`. Raises `UserError` without Ray, for a version of it
    that was not tried, where no cluster answers, where no CPU is free, and for nodes that are not as this machine."""
    require_ray()
    require_answer(address)
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, before)  # Ray sets one of its own
    try:
        with marked(out) as marker:
            found = Cluster(address, Here(uuid4().hex, stamp(), os.getcwd(), str(marker)))
            nodes, cpus = found.fit()
            print(f"Ray cluster at {address}: {cpus:g} CPUs on {nodes} nodes", file=sys.stderr, flush=True)
            yield found
    finally:
        ray.shutdown()


def require_ray() -> None:
    """Raise `UserError` unless Ray is installed in a version that was tried."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise UserError("--ray", "Ray is not installed", "pip install 'saga-rl[ray]'") from None
    if not found.startswith(TRIED) and not os.environ.get("SAGA_RL_ALLOW_UNTESTED"):
        raise UserError(f"Ray {found}", f"was not tried; {TRIED}x was",
                        "install that, or set SAGA_RL_ALLOW_UNTESTED=1 to try it anyway")


def require_answer(address: str) -> None:
    """Raise `UserError` unless a cluster with a CPU free answers at `address`."""
    where = f"--ray {address}"
    if address != "auto":
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isdigit() and "/" not in host):
            raise UserError(where, "is no address", "give HOST:PORT as `ray start` printed it, or auto")
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except (OSError, OverflowError) as e:
            raise UserError(where, f"nothing answers there ({e})",
                            "start a cluster (`ray start --head`), or correct the address") from None
    try:
        asked = subprocess.run([sys.executable, "-c", ASK, address], capture_output=True, text=True, timeout=ASK_S)
    except subprocess.TimeoutExpired:
        raise UserError(where, f"did not answer as a Ray cluster within {ASK_S:.0f} s",
                        "give HOST:PORT as `ray start` printed it") from None
    if asked.returncode:
        last = ([line.strip() for line in asked.stderr.splitlines() if line.strip()] or ["it says nothing"])[-1]
        if "ersion mismatch" in asked.stderr:
            raise UserError(where, "runs another version of Ray or of Python than this machine",
                            f"install the same on all: Ray {version('ray')}, Python {platform.python_version()}")
        raise UserError(where, f"is no Ray cluster that this machine can join ({last[:200]})",
                        "run the command on a node of the cluster, or correct the address")
    if json.loads(asked.stdout.strip().splitlines()[-1]).get("CPU", 0) < 1:
        raise UserError(where, "has no CPU free", "wait until one is, or add nodes")


@contextmanager
def marked(out: Path) -> Iterator[Path]:
    """A file beside `out` by which nodes tell that they see the same folder; gone afterwards."""
    parent = next(p for p in out.absolute().parents if p.is_dir())
    try:
        with tempfile.NamedTemporaryFile(prefix=".saga-rl-ray-", dir=parent) as file:
            yield Path(file.name)
    except PermissionError as e:
        raise UserError(parent, f"cannot be written to ({e.strerror})", "name another --out") from None


# ---------------------------------------------------------------------- this side
class Cluster:
    """A place for `pool.workers`: all CPUs that the cluster has, also those of nodes that come later."""

    def __init__(self, address: str, here: Here) -> None:
        self.address, self.here = address, here

    def fit(self) -> tuple[int, float]:
        """Nodes that have CPUs, and how many; each has looked at itself. Raises `UserError` as `Here.check`."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = ray.remote(look)
        nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
        asked = [(n, remote.options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(
            n["NodeID"], soft=False)).remote(self.here)) for n in nodes]
        fit = []
        for node, answer in asked:
            name = f"node {node['NodeManagerHostname']} of the cluster"
            try:
                error = ray.get(answer, timeout=LOOK_S)[1]
            except GetTimeoutError:
                raise UserError(name, f"did not start a process within {LOOK_S:.0f} s", "look at it, or take it out"
                                ) from None
            except RayError as e:
                if not any(n["Alive"] and n["NodeID"] == node["NodeID"] for n in ray.nodes()):
                    continue  # it has gone in the meantime
                raise UserError(name, f"cannot run saga-rl ({_line(e)})",
                                "install the same saga-rl, Python and libraries on every node") from None
            if error:
                raise UserError(*error)
            fit.append(node)
        if not fit:
            raise UserError(f"--ray {self.address}", "has no node left with a CPU", "add nodes")
        return len(fit), sum(n["Resources"]["CPU"] for n in fit)

    @contextmanager
    def workers(self, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> Iterator[Executor]:
        """As `pool.workers`. On an error, and on Ctrl-C, tasks are cancelled."""
        executor = Tasks(self, begin, arguments)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


class Tasks(Executor):
    """Hands functions to a cluster, one CPU each; `pool.submit` is how."""

    def __init__(self, place: Cluster, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
        import ray

        self._place, self._begin, self._token = place, begin, uuid4().hex
        self._kept = [ray.put(a) for a in arguments]
        self._remote = ray.remote(run).options(num_cpus=1, max_retries=RETRIES)
        self._pending: dict[Future[Any], Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        """fn: `pool.guarded`; a task that the cluster lost more than `RETRIES` times gives a `UserError`'s parts."""
        future: Future[Any] = Future()
        reference = self._remote.remote(self._place.here, self._token, self._begin, self._kept, fn, args)
        self._pending[future] = reference
        reference.future().add_done_callback(lambda done: self._done(future, done))
        return future

    def _done(self, future: Future[Any], done: Future[Any]) -> None:
        from ray.exceptions import RayError, RayTaskError

        self._pending.pop(future, None)
        error = done.exception()
        with suppress(InvalidStateError):  # cancelled
            if error is None:
                future.set_result(done.result())
            elif isinstance(error, RayError) and not isinstance(error, RayTaskError):
                future.set_result((None, (f"--ray {self._place.address}", f"lost a task for good ({_line(error)})",
                                          "look at its nodes and their memory, and run again: what is done is kept")))
            else:
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what is under way."""
        import ray

        for reference in list(self._pending.values()):
            with suppress(Exception):
                ray.cancel(reference, force=True)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
