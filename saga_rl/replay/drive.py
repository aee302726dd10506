"""Drive a server with a trace, closed loop: a step is sent when its parents are done and the gap has passed."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.replay.client import OpenAIClient, Reply, RequestFailed
from saga_rl.replay.text import PromptBook

REFUSED = (400, 401, 403, 404, 405, 413, 415, 422)


@dataclass(frozen=True)
class DriveOptions:
    """How a trace is played. `speed` divides arrivals, tool times and think times, never the server's own work."""

    model: str
    speed: float = 1.0
    concurrency: int | None = None
    """Sessions at a time, each starting as soon as a place is free; None: sessions start at their arrival times."""
    hints: bool = True
    ends: bool = True
    """Tell an agent's last request (`saga_final`); few clients know it."""
    next_tool: bool = True
    """Tell the tool that the answer will call (`saga_next_tool`); a trace knows it, a client does not."""
    priority: bool = False
    """Send the number of the session's start as vLLM's `priority`: older sessions first."""
    salt: str = ""
    block_tokens: int = 16
    agent_headers: bool = False
    """Name the session, and a sub-agent of it, in the headers that Claude Code sends, for routers that read them."""
    agentic_context: bool = False
    """Name them in vLLM Router's `vllm_xargs.agentic_context` instead of our own hints; as text, which vLLM takes."""


@dataclass
class Measured:
    """What happened, one entry a step (NaN, -1 or 0 where a step was not done) or a session. Seconds from the start."""

    ready_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    cached_tokens: NDArray[np.int64]
    first_time_tokens: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    start_s: NDArray[np.float64]
    """(n_sessions,): when the session arrived (or got its place, with a fixed concurrency)."""
    end_s: NDArray[np.float64]
    """(n_sessions,): when its last step was done; NaN for a session that failed."""
    wall_s: float = 0.0
    filled_outputs: int = 0
    """Answers whose token ids the server did not give, replaced by filler in later prompts."""
    errors: list[str] = field(default_factory=list)


Watcher = Callable[[str], None]
"""Called with `step`, `session` or `failed` as things happen."""


async def drive(trace: Trace, client: OpenAIClient, options: DriveOptions,
                watch: Watcher = lambda event: None) -> Measured:
    """Play `trace` against `client`'s server. Raises `UserError` if the server refuses the very first requests."""
    return await _Drive(trace, client, options, watch).run()


class _Drive:
    def __init__(self, trace: Trace, client: OpenAIClient, options: DriveOptions, watch: Watcher) -> None:
        self.trace, self.client, self.o, self.watch = trace, client, options, watch
        n, m = trace.n_steps, trace.n_sessions
        times, counts = np.full((4, n), np.nan), np.zeros((4, n), np.int64)
        counts[0] = -1
        self.m = Measured(*times, *counts, *np.full((2, m), np.nan))
        self.book = PromptBook(trace, options.salt, options.block_tokens)
        self.places = asyncio.Semaphore(options.concurrency) if options.concurrency else None
        self.left = np.diff(trace.session_offsets)
        self.started: dict[int, int] = {}
        self.any_success = False

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.t0

    async def run(self) -> Measured:
        self.t0 = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as group:
                for s in range(self.trace.n_sessions):
                    group.create_task(self.session(s))
        except ExceptionGroup as e:
            first: BaseException = e
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        self.m.wall_s = self.now()
        return self.m

    async def session(self, s: int) -> None:
        if self.places is not None:
            await self.places.acquire()
            self.m.start_s[s] = self.now()
        else:
            arrival = (self.trace.sessions.arrival_s[s] - self.trace.sessions.arrival_s[0]) / self.o.speed
            await self.sleep_until(arrival)
            self.m.start_s[s] = arrival
        self.started[s] = len(self.started)
        n = int(self.trace.session_offsets[s + 1] - self.trace.session_offsets[s])
        loop = asyncio.get_running_loop()
        done: list[asyncio.Future[float]] = [loop.create_future() for _ in range(n)]
        try:
            async with asyncio.TaskGroup() as group:
                for i in range(n):
                    group.create_task(self.step(s, i, done))
            ends = [f.result() for f in done]
            if any(math.isnan(e) for e in ends):
                self.watch("failed")
            else:
                self.m.end_s[s] = max(ends)
            self.watch("session")
        finally:
            self.book.forget(s)
            if self.places is not None:
                self.places.release()

    async def step(self, s: int, i: int, done: list[asyncio.Future[float]]) -> None:
        """Wait for the parents and the gaps after them, send, and settle `done[i]`: NaN passes a failure on."""
        tr, st, row = self.trace, self.trace.steps, int(self.trace.session_offsets[s]) + i
        ready, last = float(self.m.start_s[s]), -1
        parents = {int(p) for p in st.parents[st.parent_offsets[row]:st.parent_offsets[row + 1]]}
        # A prompt may continue a step that is no parent; its answer is needed all the same.
        for p in sorted(parents | {int(st.prefix_step[row])} - {-1}):
            end, prow, gap = await asyncio.shield(done[p]), int(tr.session_offsets[s]) + p, 0.0
            if math.isnan(end):
                done[i].set_result(math.nan)
                return
            if p in parents and st.agent[prow] == st.agent[row]:
                last, gap = prow, (st.tool_s[prow] + st.think_s[prow]) / self.o.speed
            ready = max(ready, end + gap)
        await self.sleep_until(ready)
        self.m.ready_s[row] = ready
        done[i].set_result(await self.send(s, i, row, last))

    async def send(self, s: int, i: int, row: int, last: int) -> float:
        tokens, first_time = self.book.prompt(s, i)
        self.left[s] -= 1
        body: dict[str, Any] = {
            "model": self.o.model, "prompt": tokens.tolist(), "temperature": 0, "ignore_eos": True,
            "max_tokens": int(self.trace.steps.output_tokens[row]), "return_token_ids": True,
        }
        headers = {}
        if self.o.priority:
            body["priority"] = self.started[s]
        if self.o.agentic_context:
            body["vllm_xargs"] = {"agentic_context": json.dumps(self.context(s, row))}
        elif self.o.hints:
            name = self.o.salt + self.trace.sessions.session_id[s]
            body |= {"session_id": name, "vllm_xargs": self.hints(s, row, last)}
            headers = {"X-Session-ID": name}
            if self.o.agent_headers:
                headers["X-Claude-Code-Session-ID"] = name
                if agent := int(self.trace.steps.agent[row]):
                    headers["X-Claude-Code-Agent-ID"] = f"{name}-{agent}"
        try:
            reply = await self.client.complete(body, headers)
        except RequestFailed as e:
            if e.status in REFUSED and not self.any_success:
                cause = f"the server refuses the replay's requests ({e})"
                raise UserError(self.client.base, cause, self.mend(e)) from None
            self.m.errors.append(f"session {self.trace.sessions.session_id[s]!r} step {i}: {e}")
            return math.nan
        self.any_success = True
        self.note(row, reply, len(tokens), first_time)
        if not self.book.finish(s, i, reply.output_ids):
            self.m.filled_outputs += 1
        self.watch("step")
        return float(self.m.done_s[row])

    def note(self, row: int, reply: Reply, prompt_tokens: int, first_time: int) -> None:
        m = self.m
        m.sent_s[row], m.first_token_s[row], m.done_s[row] = (
            reply.sent_s - self.t0, reply.first_token_s - self.t0, reply.end_s - self.t0)
        m.cached_tokens[row] = -1 if reply.cached_tokens is None else reply.cached_tokens
        m.first_time_tokens[row], m.prompt_tokens[row] = first_time, prompt_tokens
        m.output_tokens[row] = reply.output_tokens

    def context(self, s: int, row: int) -> dict[str, Any]:
        """The fields of vLLM Router's `agentic_context` that a client knows."""
        tr, st = self.trace, self.trace.steps
        name, agent, begin = self.o.salt + tr.sessions.session_id[s], int(st.agent[row]), int(tr.session_offsets[s])
        out: dict[str, Any] = {"session_id": name, "program_id": name, "agent_id": f"agent-{agent}",
                               "agent_type": tr.agent_types[tr.sessions.agent_type[s]]}
        if agent:
            first = begin + int(np.flatnonzero(st.agent[begin:row + 1] == agent)[0])
            parents = st.parents[st.parent_offsets[first]:st.parent_offsets[first + 1]]
            out["parent_agent_id"] = f"agent-{int(st.agent[begin + int(parents[0])]) if len(parents) else 0}"
        return out | ({"expected_resume": bool(self.left[s] > 0)} if self.o.ends else {})

    def hints(self, s: int, row: int, last: int) -> dict[str, str | int | float]:
        """What a client knows of its session; `last` is the row of the agent's previous step, -1 for its first."""
        tr, st = self.trace, self.trace.steps
        out: dict[str, str | int | float] = {
            "saga_agent": int(st.agent[row]), "saga_tenant": tr.tenants[tr.sessions.tenant[s]],
            "saga_agent_type": tr.agent_types[tr.sessions.agent_type[s]],
        }
        if self.o.ends:
            out["saga_final"] = int(self.left[s] == 0)
        if last >= 0 and st.tool[last] >= 0:
            out["saga_tool"] = tr.tools[st.tool[last]]
        if self.o.next_tool and st.tool[row] >= 0:
            out["saga_next_tool"] = tr.tools[st.tool[row]]
        if not math.isnan(tr.sessions.deadline_s[s]):
            allowed = (tr.sessions.deadline_s[s] - tr.sessions.arrival_s[s]) / self.o.speed
            out["saga_deadline_s"] = float(allowed - (self.now() - self.m.start_s[s]))
        return out

    def mend(self, e: RequestFailed) -> str:
        if e.status in (401, 403):
            return "pass its key with --api-key"
        if self.o.hints:
            return "add --no-hints if it does not know session_id and vllm_xargs; token ids and ignore_eos are needed"
        return "the server must take token-id prompts and the field ignore_eos, as vLLM and SGLang do"

    async def sleep_until(self, when: float) -> None:
        wait = when - self.now()
        if wait > 0:
            await asyncio.sleep(wait)
