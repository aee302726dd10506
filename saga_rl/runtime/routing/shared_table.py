"""What the API servers of one deployment know together: a table in memory that all of them have mapped.

The process that starts the servers makes it and names it in the environment; it has no name in any file system, so
nothing is left when that process ends, however it ends. Each server writes what it sent, and only its own rows; where
chains live, any of them writes. No lock is taken: a number is one aligned word, which is written whole.
It is made where nothing is compiled: what is written to `homes`, and how, stands in `homes`.
"""

from __future__ import annotations

import logging
import mmap
import os
from functools import cache
from typing import Any

import numpy as np

log = logging.getLogger("vllm.saga_rl")

VARIABLE = "SAGA_RL_SHARED_TABLE"
"""Of the environment: the table's file, as any process of this user can open it."""
STATUS = 1000
"""Added to an exit status in `dead`, so that it is never 0."""
STATE = 6
"""Columns of an engine's state (`router`)."""
HOMES = 1 << 18
"""Places for homes."""
HEAD, MAGIC = 8, 0x5A6A7AB1E1
MOST_ENGINES = 4000


class SharedTable:
    """The table of `servers` and `engines`.

    loads: (servers, engines, STATE). idle_s: (servers, engines) since when a server has had nothing at an engine, NaN =
    it has something. placed: (servers,) placements. dead: (engines,) `STATUS` + exit status of a process that ended,
    else 0. gone: (servers,) the same of the servers. hung: (engines,) 1 = a server wants the process to be ended.
    watched: (1,) 1 = somebody writes the former and reads the latter. homes: as `homes` says.
    """

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        head = np.frombuffer(memory, np.int64, HEAD)
        if head[0] != MAGIC:
            raise ValueError("no table of ours")
        self.servers, self.engines = int(head[1]), int(head[2])
        at = HEAD * 8

        def part(kind: type, *shape: int) -> np.ndarray:
            nonlocal at
            out: np.ndarray = np.frombuffer(memory, kind, int(np.prod(shape)), at).reshape(shape)
            at += out.nbytes
            return out

        self.loads = part(np.float64, self.servers, self.engines, STATE)
        self.idle_s = part(np.float64, self.servers, self.engines)
        self.placed = part(np.int64, self.servers)
        self.dead = part(np.int64, self.engines)
        self.gone = part(np.int64, self.servers)
        self.hung = part(np.int64, self.engines)
        self.watched = part(np.int64, 1)
        self.homes = part(np.int64, HOMES, 2)

    @classmethod
    def make(cls, servers: int, engines: int) -> tuple[SharedTable, str]:
        """A new table of this process, and the file by which its children open it."""
        if not 0 < engines <= MOST_ENGINES:
            raise ValueError(f"{engines} engines")
        size = HEAD * 8 + servers * engines * (STATE + 1) * 8 + (2 * servers + 2 * engines + 1) * 8 + HOMES * 16
        handle = os.memfd_create("saga-rl", os.MFD_CLOEXEC)
        os.ftruncate(handle, size)
        memory = mmap.mmap(handle, size)
        np.frombuffer(memory, np.int64, HEAD)[:3] = MAGIC, servers, engines
        table = cls(memory)
        table.idle_s[:] = -np.inf
        return table, f"/proc/{os.getpid()}/fd/{handle}"

    @classmethod
    def open(cls, file: str) -> SharedTable:
        """The table that another process made. Raises `OSError` or `ValueError`."""
        handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(mmap.mmap(handle, os.fstat(handle).st_size))
        finally:
            os.close(handle)


_OURS: list[SharedTable] = []
"""The table that this process made; it lasts as long as the process."""


def share(servers: int, engines: int) -> SharedTable:
    """Make the table of the API servers that this process is about to start; the environment tells them of it."""
    os.environ.pop(VARIABLE, None)
    table, os.environ[VARIABLE] = SharedTable.make(servers, engines)
    _OURS[:] = [table]
    return table


def ours() -> SharedTable | None:
    """What `share` made in this process."""
    return _OURS[0] if _OURS else None


@cache
def opened() -> SharedTable | None:
    """The table that this server's parent made; None, with the reason logged, if there is none."""
    try:
        return SharedTable.open(os.environ[VARIABLE])
    except (KeyError, OSError, ValueError) as e:
        log.warning("saga-rl: the API servers share no table (%s: %s); sessions' homes are drawn from their names",
                    type(e).__name__, e)
        return None
