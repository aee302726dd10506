"""From agents' recorded calls to the steps of a session: order, parents, joins, arrivals.

A sub-agent's first call has the call that spawned it as parent. The spawning agent's next call waits for the sub-agent
(a join) if the sub-agent had ended by then; a sub-agent that was still running then was in the background and nothing
waits for it, but the call after a tool that waited for it. The seconds of the tool before a join keep only what the
sub-agents do not explain.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from saga_rl.aeg.build import NAN, StepSpec


@dataclass(slots=True)
class Call:
    """One recorded LLM call; times in seconds since the session's first call."""

    start_s: float
    end_s: float
    """Recorded, or estimated where `end_known` is false; gaps are taken from it."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = -1
    tool: str | None = None
    tool_s: float = 0.0
    think_s: float = 0.0
    first_token_s: float = NAN
    end_known: bool = True
    start_known: bool = True
    hash_ids: Sequence[int] | np.ndarray = ()


@dataclass(slots=True)
class Run:
    """The calls of one agent in order. `spawn`: (run, call) that started it, by position; None for the main agent.
    `waited`: the later call of the same run whose tool waited for it, where one is known."""

    calls: list[Call]
    spawn: tuple[int, int] | None = None
    waited: int | None = None


@dataclass(slots=True)
class Placed:
    """A call with its place in the session. `previous`: step number of the same agent's previous call, or -1."""

    call: Call
    agent: int
    parents: list[int] = field(default_factory=list)
    previous: int = -1

    def spec(self, origin_s: float, *, prefix_step: int = -1, prefix_tokens: int = 0, shared_prefix: str | None = None,
             hashes: Sequence[int] = ()) -> StepSpec:
        """The step; `origin_s` is the session's first call on the trace's clock."""
        c = self.call
        return StepSpec(
            c.prompt_tokens, c.output_tokens, self.parents, self.agent, c.tool, c.tool_s, c.think_s, prefix_step,
            prefix_tokens, shared_prefix, hashes,
            start_s=origin_s + c.start_s if c.start_known else NAN, first_token_s=origin_s + c.first_token_s,
            end_s=origin_s + c.end_s if c.start_known and c.end_known else NAN, cached_tokens=c.cached_tokens)


def assemble(runs: list[Run], slack_s: float) -> list[Placed]:
    """Steps of one session in an order that puts parents first and otherwise follows start times.

    `runs[0]` is the main agent. `slack_s`: how far recorded clocks may disagree when a join is inferred.
    """
    joins: dict[tuple[int, int], list[int]] = {}
    for r, run in enumerate(runs):
        if run.spawn is None:
            continue
        p, k = run.spawn
        k = k if run.waited is None else max(k, run.waited)
        calls = runs[p].calls
        if k + 1 < len(calls) and run.calls[-1].end_s <= calls[k + 1].start_s + slack_s:
            joins.setdefault((p, k + 1), []).append(r)
    for (p, k), waited in joins.items():
        last_end = max(runs[r].calls[-1].end_s for r in waited)
        spawner = runs[p].calls[k - 1]
        spawner.tool_s = max(0.0, min(spawner.tool_s, runs[p].calls[k].start_s - last_end))

    needs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for r, run in enumerate(runs):
        for i in range(len(run.calls)):
            first = [(r, i - 1)] if i else ([run.spawn] if run.spawn else [])
            needs[r, i] = first + [(w, len(runs[w].calls) - 1) for w in joins.get((r, i), [])]
    return _in_order(runs, needs)


def _in_order(runs: list[Run], needs: dict[tuple[int, int], list[tuple[int, int]]]) -> list[Placed]:
    waiting = {node: len(parents) for node, parents in needs.items()}
    releases: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for node, parents in needs.items():
        for p in parents:
            releases.setdefault(p, []).append(node)
    heap = [(runs[r].calls[i].start_s, r, i) for (r, i), n in waiting.items() if n == 0]
    heapq.heapify(heap)
    number: dict[tuple[int, int], int] = {}
    agents = {0: 0}
    placed: list[Placed] = []
    while heap:
        _, r, i = heapq.heappop(heap)
        number[r, i] = len(placed)
        agent = agents.setdefault(r, len(agents))
        placed.append(Placed(runs[r].calls[i], agent, [number[p] for p in needs[r, i]], number[r, i - 1] if i else -1))
        for node in releases.get((r, i), []):
            waiting[node] -= 1
            if waiting[node] == 0:
                heapq.heappush(heap, (runs[node[0]].calls[node[1]].start_s, *node))
    return placed


def estimated_service_s(output_tokens: int) -> float:
    """Seconds of a call whose end was not recorded: 2 s to the first token, 50 tokens a second."""
    return 2.0 + output_tokens / 50.0


def poisson_arrivals(n: int, rate_per_min: float, seed: int) -> np.ndarray:
    """(n,) arrival seconds, exponential gaps."""
    return np.cumsum(np.random.default_rng(seed).exponential(60.0 / rate_per_min, n))


def longest_common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix of two id arrays."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(np.argmax(different)) if different.any() else n
