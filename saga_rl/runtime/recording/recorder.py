"""Writes what an engine served to its own journal, one JSON line a step, so that a crash loses at most a second.

Journals hold lengths, times, names from hints and salted block hashes, never text or tokens. `recording.merge` makes
one Trace of the journals of all engines. The scheduler only appends to a bounded queue; a thread does the rest. What
does not fit, or cannot be written, is counted and said in the journal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
import time
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saga_rl.runtime.recording.journal import Journal
from saga_rl.runtime.sessions.tracker import Served

log = logging.getLogger("vllm.saga_rl")
FLUSH_S = 1.0
MAX_REMEMBERED = 20_000
MAX_BLOCKS = 4_000_000
"""Chains, and blocks in all, whose last context is kept as hashes (8 bytes a block); beyond them the oldest start anew
in the journal."""
MAX_QUEUED = 20_000
MAX_QUEUED_BLOCKS = 1_000_000
"""Steps, and their blocks, that wait for the thread; beyond them steps are left out ("recorder behind")."""
BATCH, BATCH_BLOCKS = 500, 50_000
"""Written at once: a megabyte or so."""
ROTATE_BYTES = 256 << 20
ROTATE_S = 3600.0
VERSION = 1
BEHIND, NO_ROOM = "recorder behind", "no room"

Chain = tuple[str | None, int]
Step = tuple[Served, float, int, Sequence[bytes]]


def journal_folder(record: str | Path) -> Path:
    """Where engines keep the journals of the recording that is to become the file `record`."""
    record = Path(record)
    return record.with_name(record.name + ".journal")


def clock_of(wall: float) -> str:
    """Which clock the times come from, if it is this machine's monotonic one: journals of one clock are put right
    against each other when the wall clock jumped between their starts. "" if it is another."""
    if abs(time.time() - time.monotonic() - wall) > 5.0:
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(boot).hexdigest()[:16]


class Recorder:
    """Journal of one engine. `wall`: what to add to the engine's clock to get seconds since the epoch. Another file is
    begun after `rotate_bytes` or `rotate_s`. `UserError` if nothing can be written at the start; nothing raises after.
    """

    def __init__(self, record: str | Path, engine: int, key: str, block_tokens: int, wall: float,
                 about: dict[str, Any] | None = None, *, rotate_bytes: int = ROTATE_BYTES,
                 rotate_s: float = ROTATE_S) -> None:
        self._key = hashlib.sha256(key.encode()).digest()
        self._wall = wall
        self.counts: Counter[str] = Counter()
        """Steps written, and lost by cause."""
        self._queue: deque[Step | str] = deque()
        self._put_blocks = self._taken_blocks = 0  # each is written by one thread only
        self._behind = 0
        self._reported: Counter[str] = Counter()  # causes that the journal knows of
        self._last: OrderedDict[Chain, array[int]] = OrderedDict()
        self._blocks = 0
        self._lock = threading.Lock()  # never taken by the scheduler's thread while it serves
        self._stop, self._wake = threading.Event(), threading.Event()
        head = {"journal": VERSION, "engine": engine, "block": block_tokens, "about": about or {},
                "clock": clock_of(wall), "wall": wall}
        self._journal = Journal(journal_folder(record), f"engine-{engine}-{os.getpid()}", _line(head), rotate_bytes,
                                rotate_s, time.monotonic())
        self._files = self._journal.files
        self._thread = threading.Thread(target=self._loop, name="saga-rl journal", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ the scheduler's side: never waits
    def finished(self, served: Served, now: float, output_tokens: int, block_hashes: Sequence[bytes]) -> None:
        """The step's answer is complete. block_hashes: of the full blocks of prompt + answer, from the root; the caller
        leaves them alone from here on."""
        waiting = len(self._queue)
        if waiting >= MAX_QUEUED or self._put_blocks - self._taken_blocks + len(block_hashes) > MAX_QUEUED_BLOCKS:
            self._behind += 1
            return
        self._put_blocks += len(block_hashes)
        self._queue.append((served, now, output_tokens, block_hashes))
        if (served.hints.final or 2 * waiting > MAX_QUEUED  # a client that is done may stop the server at once
                or 2 * (self._put_blocks - self._taken_blocks) > MAX_QUEUED_BLOCKS):
            self._wake.set()

    def dropped(self, cause: str) -> None:
        """A request that will not be in the trace."""
        if len(self._queue) < 2 * MAX_QUEUED:
            self._queue.append(cause)
        else:
            self._behind += 1

    @property
    def lost(self) -> dict[str, int]:
        """Steps that served and will not be in the trace, by cause."""
        return {BEHIND: self._behind, NO_ROOM: self.counts[NO_ROOM]}

    # ------------------------------------------------------------------ the thread's side
    def flush(self) -> None:
        """Have everything that came until now on disk; waits for it."""
        with self._lock:
            try:
                self._drain()
            except Exception:  # a defect of ours must not end the thread: the server goes on
                self.counts["failed"] += 1
                if self.counts["failed"] == 1:
                    log.exception("saga-rl: recorder failed")
                self._forget()

    def close(self) -> None:
        """Flush and close; calling it twice is harmless."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=10.0)
        if not self._thread.is_alive():
            self.flush()
            self._journal.close()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            self.flush()

    def _drain(self) -> None:
        now = time.monotonic()
        while self._queue:
            items: list[Step | str] = []
            blocks = 0
            while self._queue and len(items) < BATCH and blocks < BATCH_BLOCKS:
                items.append(item := self._queue.popleft())
                blocks += 0 if isinstance(item, str) else len(item[3])
            self._batch(now, items)
        if self._behind > self._reported[BEHIND]:
            self._batch(now, [])

    def _batch(self, now: float, items: list[Step | str]) -> None:
        steps = [i for i in items if not isinstance(i, str)]
        if not self._journal.ready(now):
            self._taken_blocks += sum(len(s[3]) for s in steps)
            self._lose(len(items))
            return
        if self._journal.files != self._files:
            self._files = self._journal.files
            self._forget()
        losses = Counter({BEHIND: self._behind, NO_ROOM: self.counts[NO_ROOM]})
        lines = [_line({"dropped": cause, "n": n}) for cause, n in (losses - self._reported).items()]
        for item in items:
            if isinstance(item, str):
                lines.append(_line({"dropped": item}))
            else:
                self._taken_blocks += len(item[3])
                lines.append(_line(self._row(*item)))
        if lines and not self._journal.write("".join(lines).encode(), now):
            self._lose(len(items))
            self._forget()
            return
        self._reported += losses - self._reported
        self.counts["steps"] += len(steps)
        self.counts["files"] = self._journal.files

    def _lose(self, n: int) -> None:
        self.counts[NO_ROOM] += n

    def _forget(self) -> None:
        """The next file must be readable without the last."""
        self._last.clear()
        self._blocks = 0

    def _row(self, served: Served, now: float, output_tokens: int, block_hashes: Sequence[bytes]) -> dict[str, Any]:
        h = served.hints
        chain = (h.session, h.agent)
        before = self._last.pop(chain, array("q"))
        self._blocks -= len(before)
        same = self._common(before, block_hashes)
        new = [self._salted(b) for b in block_hashes[same:]]
        if h.session is not None and not h.final:
            after = before[:same] + array("q", new)
            self._last[chain] = after
            self._blocks += len(after)
            while len(self._last) > MAX_REMEMBERED or self._blocks > MAX_BLOCKS:
                self._blocks -= len(self._last.popitem(last=False)[1])
        return {
            "session": h.session, "n": served.number, "agent": h.agent, "caller": h.caller, "tenant": h.tenant,
            "type": h.agent_type, "tool": h.tool, "next_tool": h.next_tool, "final": h.final,
            "deadline": _number(h.deadline_s),
            "queued": self._at(served.queued_s), "scheduled": self._at(served.scheduled_s),
            "first": self._at(served.first_token_s), "end": self._at(now), "prompt": served.prompt_tokens,
            "output": output_tokens, "cached": served.cached_tokens, "preemptions": served.preemptions,
            "same": same, "hashes": new,
        }

    def _at(self, s: float) -> float | None:
        return None if math.isnan(s) else round(self._wall + s, 6)

    def _salted(self, block_hash: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(block_hash, digest_size=8, key=self._key).digest(), "big") >> 1

    def _common(self, before: Sequence[int], now: Sequence[bytes]) -> int:
        """Leading blocks that both contexts have. A block's hash covers all before it, so halving finds it."""
        low, high = 0, min(len(before), len(now))
        while low < high:
            mid = (low + high + 1) // 2
            if before[mid - 1] == self._salted(now[mid - 1]):
                low = mid
            else:
                high = mid - 1
        return low


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"


def _number(x: float) -> float | None:
    return None if math.isnan(x) else x
