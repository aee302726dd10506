"""Journal files of one engine: whole lines, on disk when `write` returns, another file by size and by time.

A full or broken disk is told once and tried again: what could not be written is the caller's to count.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from saga_rl.errors import UserError

log = logging.getLogger("vllm.saga_rl")
RETRY_S = 5.0
"""How long a disk that refused is left alone."""


class Journal:
    """`head` (one line) begins every file; `write` says whether a new file was begun, which knows nothing of the last.

    Raises `UserError` if the first file cannot be made; nothing raises after that.
    """

    def __init__(self, folder: Path, stem: str, head: str, most_bytes: int, most_s: float, now: float) -> None:
        self.folder, self.stem, self.head = folder, stem, head.encode()
        self.most_bytes, self.most_s = most_bytes, most_s
        self.files = self.size = 0
        self.path: Path | None = None
        self._file, self._since_s, self._number = -1, 0.0, 0
        self._retry_s, self._failing = -float("inf"), False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin(now)
        except OSError as e:
            raise UserError(folder, f"cannot write there ({e.strerror})", "check permissions and free space") from None

    def ready(self, now: float) -> bool:
        """Make sure that a file is open, a new one if it is time (then `files` is one more). False: no room now."""
        if self._file >= 0 and self.size > len(self.head) and (
                self.size >= self.most_bytes or now - self._since_s >= self.most_s):
            self._end()
        if self._file >= 0:
            return True
        if now < self._retry_s:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._begin(now)
        except OSError as e:
            self._fails(e, now)
            return False
        return True

    def write(self, data: bytes, now: float) -> bool:
        """Append whole lines and have them on disk. False: none of them is there, and the next file is a new one."""
        try:
            self._append(data)
            os.fdatasync(self._file)
        except OSError as e:
            self._undo()
            self._fails(e, now)
            return False
        self.size += len(data)
        if self._failing:
            log.warning("saga-rl: recording to %s goes on", self.folder)
            self._failing = False
        return True

    def close(self) -> None:
        """Twice is harmless."""
        if self._file >= 0:
            self._end()

    # ------------------------------------------------------------------ one file
    def _begin(self, now: float) -> None:
        while True:
            path = self.folder / f"{self.stem}-{self._number:04d}.jsonl"
            self._number += 1
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
                break
            except FileExistsError:  # of a process that had this number before
                continue
        self.path, self._since_s, self.size = path, now, 0
        try:
            self._append(self.head)
        except OSError:
            self._undo()
            self._number -= 1
            raise
        self.size = len(self.head)
        self.files += 1

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest):]

    def _undo(self) -> None:
        """Cut off what was half written, so that the file ends with a whole line; an empty one goes."""
        with contextlib.suppress(OSError):  # merging leaves out a line cut short
            os.ftruncate(self._file, self.size)
            if self.size == 0 and self.path is not None:
                self.path.unlink(missing_ok=True)
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):  # the descriptor is gone all the same
            os.close(self._file)
        self._file = -1

    def _fails(self, e: OSError, now: float) -> None:
        self._retry_s = now + RETRY_S
        if not self._failing:
            log.error("saga-rl: recording to %s stops (%s); tried again every %g s, what comes until then is counted "
                      "and lost", self.folder, e.strerror, RETRY_S)
        self._failing = True
