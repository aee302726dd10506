"""What one score costs: the compiled scorer against torch and ONNX Runtime, on the shipped checkpoints and a wide net.

    python benchmarks/inference.py [--rows 256] [--repeats 200] [--json FILE]

Prints nanoseconds a candidate: compiled row by row (what simulator and vLLM call), torch and ONNX Runtime on a whole
batch of rows (their best case) and on one row. One thread each. The median of `--repeats` timed calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numba import njit
from rich.console import Console
from rich.table import Table

from saga_rl.learn.network import HIDDEN, RowNet
from saga_rl.learn.offline.onnx_export import onnx_bytes
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.features import COLUMNS
from saga_rl.policies.learned.checkpoint import (
    LEARNED_FEATURES,
    MANIFEST,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from saga_rl.provenance import provenance

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"


def per_row(call: Callable[[], object], rows: int, repeats: int) -> float:
    """Median nanoseconds a row of `call`, which scores `rows` rows."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - started) / rows)
    return statistics.median(times)


def measure(checkpoint: Checkpoint, rows: int, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    n = len(checkpoint.mean)
    x = np.zeros((rows, COLUMNS[checkpoint.decision]))
    x[:, :n] = rng.normal(size=(rows, n)) * checkpoint.std + checkpoint.mean
    if checkpoint.decision == "eviction":
        x[:, [LEARNED_FEATURES["eviction"].index(k) for k in ("waiting", "ended")]] = 0.0  # else nothing is computed
    policy = checkpoint.policy()
    scratch, out = np.zeros(policy.scratch), np.zeros(rows)
    score = policy.score

    @njit
    def compiled(x, params, scratch, out):
        for i in range(len(x)):
            out[i] = score(x[i], params, scratch)

    net = RowNet.from_layers(checkpoint.layers, checkpoint.mean, checkpoint.std).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_bytes(checkpoint), options, providers=["CPUExecutionProvider"])
    narrow = np.ascontiguousarray(x[:, :n], np.float32)
    batch = torch.from_numpy(narrow)
    with torch.inference_mode():
        result = {
            "compiled": per_row(lambda: compiled(x, policy.params, scratch, out), rows, repeats),
            "torch, batch": per_row(lambda: net(batch), rows, repeats),
            "onnx, batch": per_row(lambda: session.run(None, {"rows": narrow}), rows, repeats),
            "torch, one row": per_row(lambda: net(batch[:1]), 1, repeats),
            "onnx, one row": per_row(lambda: session.run(None, {"rows": narrow[:1]}), 1, repeats)}
        by_torch = net(batch).numpy()
    result["weights"] = float(sum(w.size + b.size for w, b in checkpoint.layers))
    result["largest difference to torch"] = float((np.abs(out - by_torch) / np.maximum(np.abs(by_torch), 1)).max())
    return result


def fresh(folder: Path) -> Checkpoint:
    """A network of the default shape with random weights."""
    net = RowNet(len(LEARNED_FEATURES["eviction"]), HIDDEN)
    others = {s: {"placement": "sticky", "ordering": "fcfs", "admission": "none"}[s] for s in DECISIONS[1:]}
    return load_checkpoint(save_checkpoint(folder / "default", "eviction", net.layers(), net.mean.numpy(),
                                           net.std.numpy(), "", {}, others))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        found = {f"default shape {HIDDEN}": fresh(Path(work))}
        found |= {str(p.parent.relative_to(SHIPPED)): load_checkpoint(p.parent)
                  for p in sorted(SHIPPED.rglob(MANIFEST))}
        results = {name: measure(c, args.rows, args.repeats) for name, c in found.items()}
    table = Table(title="nanoseconds a candidate (median)")
    table.add_column("checkpoint")
    for column in next(iter(results.values())):
        table.add_column(column, justify="right")
    for name, row in results.items():
        table.add_row(name, *(f"{v:.1e}" if k.startswith("largest") else f"{v:,.0f}" for k, v in row.items()))
    Console(width=140).print(table)
    if args.json:
        args.json.write_text(json.dumps({"measured": results, "provenance": provenance(seed=0, trace=None)}, indent=2))


if __name__ == "__main__":
    main()
