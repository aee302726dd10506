"""Writes what an engine served to its own journal, one JSON line a step, so that a crash loses at most a second.

Journals hold lengths, times, names from hints and salted block hashes, never text or tokens. `recording.merge` makes
one Trace of the journals of all engines.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.tracker import Served

FLUSH_S = 1.0
MAX_REMEMBERED = 20_000
"""Chains whose last context is kept as hashes (8 bytes a block); beyond them the oldest start anew in the journal."""
VERSION = 1


def journal_folder(record: str | Path) -> Path:
    """Where engines keep the journals of the recording that is to become the file `record`."""
    record = Path(record)
    return record.with_name(record.name + ".journal")


class Recorder:
    """Journal of one engine. `wall`: what to add to the engine's clock to get seconds since the epoch."""

    def __init__(self, record: str | Path, engine: int, key: str, block_tokens: int, wall: float,
                 about: dict[str, Any] | None = None) -> None:
        folder = journal_folder(record)
        self._key = hashlib.sha256(key.encode()).digest()
        self._wall = wall
        self._last: OrderedDict[tuple[str | None, int], list[int]] = OrderedDict()
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._stop, self._wake = threading.Event(), threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"engine-{engine}-{os.getpid()}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as e:
            raise UserError(folder, f"cannot write there ({e.strerror})", "check permissions and free space") from None
        self._put({"journal": VERSION, "engine": engine, "block": block_tokens, "about": about or {}})
        self.flush()
        self._thread = threading.Thread(target=self._loop, name="saga-rl journal", daemon=True)
        self._thread.start()

    def finished(self, served: Served, now: float, output_tokens: int, block_hashes: Sequence[bytes]) -> None:
        """The step's answer is complete. block_hashes: of the full blocks of prompt + answer, from the root."""
        h = served.hints
        chain = (h.session, h.agent)
        before = self._last.pop(chain, []) if h.session is not None else []
        same = self._common(before, block_hashes)
        after = before[:same] + [self._salted(b) for b in block_hashes[same:]]
        if h.session is not None and not h.final:
            self._last[chain] = after
            if len(self._last) > MAX_REMEMBERED:
                self._last.popitem(last=False)
        self._put({
            "session": h.session, "n": served.number, "agent": h.agent, "tenant": h.tenant, "type": h.agent_type,
            "tool": h.tool, "next_tool": h.next_tool, "final": h.final, "deadline": _number(h.deadline_s),
            "queued": self._at(served.queued_s), "scheduled": self._at(served.scheduled_s),
            "first": self._at(served.first_token_s), "end": self._at(now), "prompt": served.prompt_tokens,
            "output": output_tokens, "cached": served.cached_tokens, "preemptions": served.preemptions,
            "same": same, "hashes": after[same:],
        })
        if h.final:  # a client that is done may stop the server at once
            self._wake.set()

    def dropped(self, cause: str) -> None:
        """A request that will not be in the trace."""
        self._put({"dropped": cause})

    def flush(self) -> None:
        """Hand everything to the operating system."""
        with self._lock:
            lines, self._lines = self._lines, []
            if lines and self._file >= 0:
                data = memoryview("".join(lines).encode())
                while data:
                    data = data[os.write(self._file, data):]

    def close(self) -> None:
        """Flush and close; calling it twice is harmless."""
        self._stop.set()
        self._wake.set()
        self.flush()
        with self._lock:
            if self._file >= 0:
                os.fsync(self._file)
                os.close(self._file)
                self._file = -1

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            self.flush()

    def _put(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
        with self._lock:
            self._lines.append(line)

    def _at(self, s: float) -> float | None:
        return None if math.isnan(s) else round(self._wall + s, 6)

    def _salted(self, block_hash: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(block_hash, digest_size=8, key=self._key).digest(), "big") >> 1

    def _common(self, before: list[int], now: Sequence[bytes]) -> int:
        """Leading blocks that both contexts have. A block's hash covers all before it, so halving finds it."""
        low, high = 0, min(len(before), len(now))
        while low < high:
            mid = (low + high + 1) // 2
            if before[mid - 1] == self._salted(now[mid - 1]):
                low = mid
            else:
                high = mid - 1
        return low


def _number(x: float) -> float | None:
    return None if math.isnan(x) else x
