"""Random orders of everything that can happen between a client and its engines: every request is answered once, by one
engine, or fails because its engine was lost in the middle of it; and no count is left over."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

from engines_kit import client, outputs, request, restored

from saga_rl.runtime.routing import stealing
from saga_rl.runtime.routing.engines import Engines, EngineState
from saga_rl.runtime.routing.vllm_client import MINE

ENGINES = 3


class World:
    """Engines that are made up behind vLLM's own client: what is sent arrives, what they say is read later."""

    def __init__(self) -> None:
        self.c = client(ENGINES, "saga:theta=0.3")
        self.mine: Engines = self.c.__dict__[MINE]
        self.read = 0
        self.holds: list[dict[str, bool]] = [{} for _ in range(ENGINES)]  # request: whether it has begun
        self.said: list[list] = [[] for _ in range(ENGINES)]
        self.dead: set[int] = set()
        self.sent = self.waiting = 0
        self.open: set[str] = set()
        self.gone: set[str] = set()
        self.answers: dict[str, set[int]] = defaultdict(set)
        self.done: list[str] = []
        self.failed: list[str] = []
        self.c._call_utility_async = self.give_up

    def arrive(self) -> None:
        """Engines read what was sent to them."""
        from vllm.v1.engine import EngineCoreRequestType as Kind

        sent, self.read = self.c.input_socket.sent[self.read:], len(self.c.input_socket.sent)
        for engine, kind, (what,) in sent:
            w = int.from_bytes(engine, "little")
            if w in self.dead:
                continue
            if kind == Kind.ADD.value:
                name = what.request_id
                assert not any(name in h for v, h in enumerate(self.holds) if v not in self.dead), "served twice"
                self.holds[w][name] = False
            else:
                for name in what:
                    if self.holds[w].pop(name, None) is not None:
                        self.said[w].append(outputs(w, finished={name}))

    async def give_up(self, method, command, payload, *, engine):
        w = int.from_bytes(engine, "little")
        given = next((n for n in payload["requests"] if self.holds[w].get(n) is False), None)
        if given is not None:
            del self.holds[w][given]
            self.said[w].append(outputs(w, finished={given}))
            for _ in range(self.waiting):
                await self.deliver(w)
        return {"given": given}

    async def deliver(self, w: int) -> None:
        """The client reads what engine w said first."""
        if not self.said[w]:
            return
        what = self.said[w].pop(0)
        await type(self.c).process_engine_outputs(self.c, what)
        for o in what.outputs:
            if o.request_id in self.open:
                self.answers[o.request_id].add(w)
                if o.finish_reason is not None:
                    self.open.discard(o.request_id)
                    self.done.append(o.request_id)

    def failures(self) -> None:
        while not self.c.outputs_queue.empty():
            for o in self.c.outputs_queue.get_nowait().outputs:
                assert o.request_id in self.open
                self.open.discard(o.request_id)
                self.failed.append(o.request_id)

    async def act(self, what: str, k: int) -> None:
        w = k % ENGINES
        names = sorted(self.holds[w])
        name = names[k % len(names)] if names and w not in self.dead else None
        if what == "add":
            self.sent += 1
            self.open.add(f"r{self.sent}")
            await self.c.add_request_async(request(f"r{self.sent}", f"s{k % 4}", tokens=1 + k * 20))
        elif what == "begin" and name:
            self.holds[w][name] = True
            self.said[w].append(outputs(w, {name: 1}))
        elif what == "end" and name:
            del self.holds[w][name]
            self.said[w].append(outputs(w, {name: 1}, {name}))
            if k % 5 == 0:
                self.said[w].append(outputs(w, {}, {name}))  # told twice
        elif what == "deliver":
            await self.deliver(w)
        elif what == "abort" and self.open:
            name = sorted(self.open)[k % len(self.open)]
            self.open.discard(name)
            self.gone.add(name)
            await self.c.abort_requests_async([name])
        elif what == "lose" and len(self.dead | {w}) < ENGINES and w not in self.dead:
            self.dead.add(w)
            self.holds[w] = {}
            self.mine.engine_lost(w, -9, lambda: pytest.fail("vLLM's own way was taken"))
        elif what == "settle" and w in self.dead and self.mine.states[w] is not EngineState.OUT:
            await self.mine.resend_or_fail(w)
        elif what == "steal" and names and w not in self.dead:
            thief = (w + 1 + k % 2) % ENGINES
            offered = [n for n in names if stealing.free(self.mine, n) and thief not in
                       self.mine.placement.router.flights[n].been]
            self.waiting = k % 4
            if offered and thief not in self.dead:
                await stealing.steal(self.c, self.mine, thief, w, offered)
        self.arrive()
        self.failures()


ACTS = st.tuples(st.sampled_from(("add", "add", "add", "begin", "begin", "end", "end", "deliver", "deliver", "deliver",
                                  "abort", "lose", "settle", "steal", "steal")), st.integers(0, 59))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTS, min_size=5, max_size=80))
def test_every_request_is_answered_once_by_one_engine_and_nothing_is_left_over(acts):
    from vllm.v1.engine.core_client import BackgroundResources, DPLBAsyncMPClient

    async def never_by_itself(self, w, stock):
        pass

    async def scene():
        world = World()
        for what, k in acts:
            await world.act(what, k)
        for _ in range(2 * ENGINES):  # in the end all is sent again, served and read
            for w in range(ENGINES):
                await world.act("settle", w)
            for w in set(range(ENGINES)) - world.dead:
                while world.holds[w]:
                    await world.act("end", w)
            for w in range(ENGINES):
                while world.said[w]:
                    await world.act("deliver", w)
        assert not world.open, "a client waits for ever"
        assert len(set(world.done)) == len(world.done)
        assert not set(world.done) & set(world.failed)
        assert all(len(by) == 1 for by in world.answers.values())
        assert all(name in world.answers for name in world.done + world.failed)  # only what had begun may fail
        assert set(world.failed) <= {n for n, by in world.answers.items() if by <= world.dead}
        c, router = world.c, world.mine.placement.router
        assert not c.reqs_in_flight and not +c.engine_inflight and not -c.engine_inflight
        assert not world.mine.requests
        if router is not None:
            assert not router.flights
            assert all((e.in_flight, e.flight_tokens, e.queued_tokens) == (0, 0, 0) for e in router.engines)
        assert not [n for n in world.mine.counts if n.startswith("fallback") and "budget" not in n], world.mine.counts

    with restored(DPLBAsyncMPClient, BackgroundResources, Engines):
        Engines._resend_soon = never_by_itself
        DPLBAsyncMPClient._send_input = lambda self, request_type, request, engine: self.input_socket.send_multipart(
            (engine, request_type.value, request))
        asyncio.run(scene())
