"""Two engines in two processes, each pinned to a core of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from fidelity_kit.engine import ENVIRONMENT, EngineOptions, Job, serve
from fidelity_kit.log import EngineLog
from fidelity_kit.settings import ENGINES
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.sim.cost.profile import CostProfile

LEAD_S, START_LIMIT_S = 0.3, 300.0


def cores() -> list[int]:
    """One core for each engine. Raises `UserError` if this process may not use as many."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < ENGINES:
        raise UserError("processor cores", f"this process may use {len(mine)}", f"run it where it may use {ENGINES}")
    return mine[:ENGINES]


class Pair:
    """Context manager: engines are started on entry and ended on exit."""

    def __init__(self, options: list[EngineOptions]) -> None:
        self.options = options
        self.pipes: list[Connection] = []
        self.children: list[Any] = []

    def __enter__(self) -> Pair:
        context = multiprocessing.get_context("spawn")
        before = dict(os.environ)
        try:
            for one in self.options:
                ours, theirs = context.Pipe()
                os.environ.update(ENVIRONMENT, VLLM_CPU_OMP_THREADS_BIND=str(one.core))
                child = context.Process(target=serve, args=(theirs, one), daemon=True)
                child.start()
                theirs.close()
                self.pipes.append(ours)
                self.children.append(child)
        finally:
            os.environ.clear()
            os.environ.update(before)
        try:
            self._collect("ready", START_LIMIT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 where: TracebackType | None) -> None:
        for pipe, child in zip(self.pipes, self.children, strict=True):
            if kind is None and child.is_alive():
                with contextlib.suppress(OSError):
                    pipe.send(None)
                child.join(10)
            if child.is_alive():
                child.terminate()
                child.join()

    def run(self, trace: Trace, shares: list[tuple[int, ...]], until_s: float = float("inf"),
            clock: CostProfile | None = None, limit_s: float = 600.0) -> list[EngineLog]:
        """Serve each engine's share of the sessions, both from the same moment on. clock: see `Job`."""
        for pipe in self.pipes:
            pipe.send("warm up")
        self._collect("warm", limit_s)
        t0 = time.perf_counter() + LEAD_S
        for pipe, share in zip(self.pipes, shares, strict=True):
            pipe.send(Job(trace, share, t0, until_s, clock))
        return self._collect("log", limit_s)

    def _collect(self, wanted: str, limit_s: float) -> list[Any]:
        """The answer of every child, in order."""
        end, out = time.monotonic() + limit_s, []
        for pipe in self.pipes:
            if not pipe.poll(max(end - time.monotonic(), 0.0)):
                raise UserError("vLLM engine", f"did not answer {wanted!r} in {limit_s:.0f} s",
                                "run it on a quieter machine")
            try:
                kind, value = pipe.recv()
            except EOFError:
                raise UserError("vLLM engine", "ended without a word", "is vLLM installed (extra serve-cpu)?") from None
            if kind != wanted:
                raise UserError("vLLM engine", f"failed: {str(value).strip().splitlines()[-1]}",
                                "run `python -c 'import vllm'`; the extra serve-cpu installs it")
            out.append(value)
        return out
