"""What the inferred graph would predict with a longer memory of the chain, a shorter one of the past, or no delay.

    python benchmarks/aeg/variants.py --data DIR

Next-tool accuracy on katas and weka of counts of transitions in plain Python, predict before observe:

- order: how many tools back a state reaches (the longest one seen 10 times is used);
- fading: what a state's counts are multiplied by before one is added (1: nothing is forgotten);
- last steps: whether the step that ends a chain is counted. `policies.state.tables` count a transition when the chain's
  following request comes, so they never see that one.

The first row of each block is what the policies read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from workloads import REAL

from saga_rl.aeg.importers import import_trace
from saga_rl.aeg.inference.stream import Stream, stream
from saga_rl.errors import run_user_command

ENOUGH = 10
VARIANTS = [(1, 1.0, False), (1, 1.0, True), (1, 0.99, False), (2, 1.0, False), (2, 0.99, False), (3, 0.99, False)]


def accuracy(s: Stream, order: int, fading: float, last_steps: bool, theta: float) -> tuple[float, float, float]:
    """Share of next tools right, share predicted with confidence >= theta, share of those right."""
    counts: dict[tuple[int, ...], np.ndarray] = {}
    state: dict[int, tuple[tuple[int, ...], int, float]] = {}  # chain -> tools so far, prediction, confidence
    n = right = sure = sure_right = 0
    events = sorted([(e, 0, i) for i, e in enumerate(s.end_s)]
                    + [(s.start_s[j], 1, i) for i, j in enumerate(s.after) if j >= 0])
    pending: dict[int, tuple[tuple[int, ...], int]] = {}

    def count(agent_type: int, tools: tuple[int, ...], tool: int) -> None:
        for k in range(1, min(order, len(tools)) + 1):
            row = counts.setdefault((agent_type, *tools[-k:]), np.zeros(len(s.tools) + 1))
            row *= fading
            row[tool] += 1.0

    for _, kind, i in events:
        c, tool = int(s.chain[i]), int(s.tool[i]) + 1
        agent_type = int(s.agent_type[c])
        if kind == 1:  # the chain's next request comes
            if not last_steps and i in pending:
                count(agent_type, *pending.pop(i))
            continue
        tools: tuple[int, ...] = ()
        if c in state:
            tools, guess, confidence = state[c]
            n += 1
            right += guess == tool
            sure += confidence >= theta
            sure_right += confidence >= theta and guess == tool
            if last_steps:
                count(agent_type, tools, tool)
            else:
                pending[i] = tools, tool
        tools = (*tools, tool)[-order:]
        state[c] = (tools, *_predict(counts, agent_type, tools))
    return right / max(n, 1), sure / max(n, 1), sure_right / max(sure, 1)


def _predict(counts: dict[tuple[int, ...], np.ndarray], agent_type: int, tools: tuple[int, ...]) -> tuple[int, float]:
    for k in range(len(tools), 0, -1):
        row = counts.get((agent_type, *tools[-k:]))
        if row is not None and (k == 1 or row.sum() >= ENOUGH):
            return int(row.argmax()), float(row.max() / row.sum())
    return -1, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of real traces")
    parser.add_argument("--theta", type=float, default=0.7, help="confidence of an edge (0.7)")
    args = parser.parse_args()
    table = Table(title="next tool, from counts of transitions", title_justify="left")
    for column in ("workload", "agent type by", "order", "fading", "last steps", "right", "sure, share", "sure, right"):
        table.add_column(column, justify="left" if column in ("workload", "agent type by") else "right")
    jobs = [(name, types, v) for name, types in (("katas", "session"), ("katas", "text"), ("weka", "session"))
            for v in VARIANTS]
    streams = {}
    console = Console(stderr=True)
    for name, types, (order, fading, last_steps) in track(jobs, "counting", console=console, transient=True):
        if (name, types) not in streams:
            streams[name, types] = stream(import_trace(name, args.data / REAL[name]), types)
        figures = accuracy(streams[name, types], order, fading, last_steps, args.theta)
        table.add_row(name, types, str(order), f"{fading:g}", "yes" if last_steps else "no",
                      *(f"{v:.3f}" for v in figures))
    Console().print(table)


if __name__ == "__main__":
    run_user_command(main)
