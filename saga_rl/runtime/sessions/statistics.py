"""What an engine learned in service, kept over restarts: the tracker's tables, and which code each name has.

One safetensors file an engine, whose header holds names and versions as JSON. Reading one runs no code; sizes and
ranges are checked before a number is used. What can be computed from the rest (histograms, percentiles) is not in it,
so it cannot contradict itself. Tenants are not in it: nothing is learned of them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from saga_rl.errors import UserError
from saga_rl.files import atomic, must_exist
from saga_rl.policies.features import same_hash, tables_hash
from saga_rl.policies.state import tables as tb
from saga_rl.runtime.sessions.hints import MAX_NAME
from saga_rl.runtime.sessions.tracker import MAX_TOOLS, MAX_TYPES, Tracker

log = logging.getLogger("vllm.saga_rl")
FORMAT, VERSION = "saga-rl-statistics", 1
MAX_BYTES = 8 << 20
"""Larger files are not even read: full tables have 4.5 MB."""
MOST = 1e15
"""No count, length or time is larger."""
SAVE_S = 60.0
_MEND = "serving starts cold; move the file away to be rid of this message"
_DTYPES = {"ring": np.uint8, "returns": np.int64, "ends": np.int64, "obs": np.float64, "types": np.float64,
           "calls": np.float64}


def path_of(folder: str | Path, engine: int) -> Path:
    """The file of one engine in the folder that `statistics` names."""
    return Path(folder) / f"engine-{engine}.safetensors"


def pack(tracker: Tracker) -> bytes:
    """The file's bytes, at most `MAX_BYTES`."""
    t = tracker.tables
    counts = [np.maximum(x[0], 0) for x in (t.returns, t.ends)]
    arrays = (t.ring[0].astype(np.uint8), *counts, t.obs[0], t.types[0], np.maximum(t.calls[0], 0.0))
    head = {"format": FORMAT, "version": VERSION, "tables_hash": tables_hash(),
            "tools": list(tracker.tools.codes), "types": list(tracker.types.codes)}
    tensors = {k: np.ascontiguousarray(a) for k, a in zip(_DTYPES, arrays, strict=True)}
    return to_safetensors(tensors, {"saga": json.dumps(head)})


def write(data: bytes, path: str | Path) -> None:
    """`data` at `path`, whole or not at all, on the disk. Raises `UserError` or `OSError`."""
    with atomic(path) as tmp, tmp.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def save(tracker: Tracker, path: str | Path) -> None:
    """Write what `tracker` has learned. Raises `UserError` or `OSError` where that cannot be."""
    write(pack(tracker), path)


def load(tracker: Tracker, path: str | Path) -> None:
    """Give `tracker`, which has seen nothing yet, what was saved. `UserError` for a file that is damaged, hostile or of
    another version; then nothing has changed."""
    if len(tracker) or tracker.tools.codes or tracker.types.codes:
        raise ValueError("the tracker has begun already")
    path = must_exist(path)
    head, arrays = _read(path)
    tools = _names(path, head, "tools", MAX_TOOLS)
    types = _names(path, head, "types", MAX_TYPES)
    tables = _tables(path, arrays, len(tools), len(types))
    tracker.tables = tables
    tracker.tools.codes.update(tools)
    tracker.types.codes.update(types)
    tracker.version += 1


class Keeper:
    """Restores an engine's statistics when made, saves them every `every_s` seconds and at `close`.

    Nothing of it raises: a file that cannot be read is told in one line and kept beside as `NAME.refused` once there is
    something new to save; a save that fails is counted in `failures`, logged once, and tried again at the next time.
    """

    def __init__(self, tracker: Tracker, folder: str | Path, engine: int, now: float, every_s: float = SAVE_S) -> None:
        self.tracker, self.every_s, self.path = tracker, every_s, path_of(folder, engine)
        self.restored, self.saves, self.failures = False, 0, 0
        self._next, self._version, self._refused, self._failing = now + every_s, tracker.version, False, False
        self._writer: threading.Thread | None = None
        if self.path.exists():
            try:
                load(tracker, self.path)
                self.restored = True
                log.info("saga-rl: statistics restored from %s (%d tools, %d agent types)", self.path,
                         len(tracker.tools.codes), len(tracker.types.codes))
            except (UserError, OSError) as e:
                self._refused = True
                log.warning("saga-rl: statistics not restored: %s", e)
        self._version = tracker.version

    def maybe(self, now: float) -> bool:
        """Save if it is time and there is something new; the disk is waited for by a thread. Whether it began to."""
        if now < self._next or (self._writer is not None and self._writer.is_alive()):
            return False
        self._next = now + self.every_s
        if self.tracker.version == self._version:
            return False
        self._version = self.tracker.version
        self._writer = threading.Thread(target=self._save, args=(pack(self.tracker),), name="saga-rl statistics",
                                        daemon=True)
        self._writer.start()
        return True

    def save_now(self) -> bool:
        """Save and wait for it (command "save"). Whether it is on disk."""
        if self._writer is not None:
            self._writer.join()
        self._version = self.tracker.version
        return self._save(pack(self.tracker))

    def close(self) -> None:
        """Save what is new, once more."""
        if self._writer is not None:
            self._writer.join(timeout=10.0)
        if self.tracker.version != self._version:
            self.save_now()

    def _save(self, data: bytes) -> bool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._refused:
                self.path.replace(self.path.with_name(self.path.name + ".refused"))
                self._refused = False
            write(data, self.path)
        except (OSError, UserError) as e:
            self.failures += 1
            if not self._failing:
                log.error("saga-rl: statistics not saved (%s); tried again every %g s", e, self.every_s)
            self._failing = True
            return False
        self.saves += 1
        self._failing = False
        return True


# ---------------------------------------------------------------------- checks
def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(path, f"has {size:,} bytes, more than statistics may ({MAX_BYTES:,})", _MEND)
    try:
        with safe_open(path, framework="numpy") as f:
            head = json.loads((f.metadata() or {}).get("saga", "null"))
            known = sorted(f.keys()) == sorted(_DTYPES)
            arrays = {k: f.get_tensor(k) for k in _DTYPES} if known else {}
    except (SafetensorError, ValueError, RecursionError, OSError, TypeError, AttributeError, KeyError) as e:
        raise UserError(path, f"is not a statistics file, or is cut short ({e})", _MEND) from None
    if not isinstance(head, dict) or head.get("format") != FORMAT or not known:
        raise UserError(path, "is not a statistics file of saga-rl", _MEND)
    if head.get("version") != VERSION:
        raise UserError(path, f"is of version {head.get('version')!r}, this release reads {VERSION}", _MEND)
    if not same_hash(head.get("tables_hash"), tables_hash()):
        raise UserError(path, "was learned under another definition of the tables", _MEND)
    return head, arrays


def _names(path: Path, head: dict[str, Any], key: str, most: int) -> dict[str, int]:
    names = head.get(key)
    if not isinstance(names, list) or len(names) > most or len(set(map(str, names))) != len(names) or not all(
            isinstance(n, str) and 0 < len(n) <= MAX_NAME for n in names):
        raise UserError(path, f"{key} is not a list of at most {most} different names", _MEND)
    if len(names) == most and "other" not in names:
        raise UserError(path, f"{key} is full and has no 'other'", _MEND)
    return {n: i for i, n in enumerate(names)}


def _tables(path: Path, a: dict[str, NDArray], n_tools: int, n_types: int) -> tb.Tables:
    """The tables with what is computed from the rest; room for the names and at most for twice the limits."""
    rows, kinds = (a["ring"].shape or (0,))[0], (a["types"].shape or (0,))[0]
    tools = rows - 2
    if not max(n_tools, 1) <= tools <= 2 * MAX_TOOLS or not max(n_types, 1) <= kinds <= 2 * MAX_TYPES:
        raise UserError(path, f"has tables for {tools} tools and {kinds} agent types", _MEND)
    t = tb.make_tables(1, tools, kinds)
    for name, dtype in _DTYPES.items():
        x, shape = a[name], getattr(t, name).shape[1:]
        if x.dtype != dtype or x.shape != shape:
            raise UserError(path, f"{name} is {x.dtype} {x.shape}, not {np.dtype(dtype)} {shape}", _MEND)
        low = -MOST if name in ("types", "obs") else 0  # a context may have shrunk
        if not (np.isfinite(x).all() and (x >= low).all() and (x <= MOST).all()):
            raise UserError(path, f"{name} holds a number out of range", _MEND)
        getattr(t, name)[0] = x
    if ((t.ring >= tb.BINS).any() or (t.types[..., [tb.STEPS, tb.OUT, tb.STEP_S, tb.DONE, tb.ANNOUNCED]] < 0).any()
            or (t.types[..., tb.ANNOUNCED] > 1).any()):
        raise UserError(path, "holds a number out of range", _MEND)
    for row in range(rows):
        seen = t.ring[0, row, :min(int(t.returns[0, row]), tb.WINDOW)]
        t.hist[0, row] = np.bincount(seen, minlength=tb.BINS)
    _derive(t)
    return t


def _derive(t: tb.Tables) -> None:
    """Suffix sums and percentiles from `hist`, by the additions of `tables._observe_row` in their order."""
    n, seconds = np.zeros(t.hist.shape[:2]), np.zeros(t.hist.shape[:2])
    for b in range(tb.BINS - 1, -1, -1):
        n += t.hist[..., b]
        seconds += t.hist[..., b] * tb.bin_seconds(b)
        t.above[..., b], t.seconds_above[..., b] = n, seconds
    late = t.above[..., :-1] >= 0.05 * n[..., None]
    highest = tb.BINS - 1 - late[..., ::-1].argmax(-1)
    middle = np.array([tb.bin_seconds(b) for b in range(tb.BINS)])
    t.p95[...] = np.where(t.returns > 0, middle[highest], tb.COLD_TTL_S)
