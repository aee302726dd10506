"""Measure the memory that an import takes: makes a file of CALLS calls up, imports it in a process of its own, and
prints that one's peak.

    python benchmarks/import_memory.py --calls 1000000 --format jsonl
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SESSION = 50
"""Calls of a session."""
T0 = 1_767_225_600


def jsonl_rows(calls: int) -> Iterator[dict[str, Any]]:
    """Calls of growing contexts, with times and tools."""
    for i in range(calls):
        s, k = divmod(i, SESSION)
        at = T0 + 3 * s + 10.5 * k
        yield {"session": f"s{s}", "step": k, "in": 1000 + 300 * k, "out": 100 + k % 7, "cached": 900, "t_req": at,
               "t_end": at + 2.25, "tenant": "a", "model": "m", "tools": [{"name": "bash", "dur": 1.5}]}


def mooncake_rows(calls: int) -> Iterator[dict[str, Any]]:
    """Requests with block ids, of which 50 continue each other."""
    for i in range(calls):
        s, k = divmod(i, SESSION)
        ids = list(range(100 * s, 100 * s + 10 + k))
        yield {"timestamp": 3 * i, "input_length": 512 * len(ids) - 5, "output_length": 99, "hash_ids": ids}


def claude_code_rows(calls: int) -> Iterator[dict[str, Any]]:
    """Two lines a call, as a transcript has them."""
    for i in range(calls):
        s, k = divmod(i, SESSION)
        usage = {"input_tokens": 5, "cache_read_input_tokens": 1000 + 300 * k, "output_tokens": 120}
        for second, kind, message in (
                (0, "user", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"t{i - 1}"}]}),
                (3, "assistant", {"id": f"m{i}", "model": "m", "usage": usage, "content": [
                    {"type": "tool_use", "id": f"t{i}", "name": "Bash", "input": {"command": "x" * 50}}]})):
            minute, within = divmod(10 * k + second, 60)
            yield {"type": kind, "sessionId": f"s{s}", "uuid": f"{kind}{i}", "message": message,
                   "timestamp": f"2026-01-01T{s % 24:02d}:{minute:02d}:{within:02d}.000Z"}


ROWS = {"jsonl": jsonl_rows, "mooncake": mooncake_rows, "claude-code": claude_code_rows}


def peak_bytes(fmt: str, calls: int) -> int:
    """Peak resident memory of a process that imports and writes `calls` made-up calls of format `fmt`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.jsonl"
        with path.open("w") as f:
            f.writelines(json.dumps(row) + "\n" for row in ROWS[fmt](calls))
        done = subprocess.run([sys.executable, __file__, "--import", str(path), "--format", fmt], check=True,
                              capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--format", choices=sorted(ROWS), default="jsonl")
    parser.add_argument("--import", dest="file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.file:
        from saga_rl.aeg.importers import import_trace
        from saga_rl.aeg.io import write_trace

        write_trace(import_trace(given.format, given.file), Path(given.file).with_suffix(".parquet"))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    print(f"{given.format}, {given.calls:,} calls: peak {peak_bytes(given.format, given.calls) / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
