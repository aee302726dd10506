"""Engines that die: with several engines on one machine, one that dies is taken out and the others serve on.

vLLM's own client ends the whole server when any engine process ends. Here, for dense models (whose data-parallel
engines run apart), placement passes the dead engine over, requests of it that had not begun to answer are sent again,
those in the middle of an answer fail with vLLM's own error, and the last engine's death ends the server as ever.
docs/how-to/several-engines.md says what a client sees. Whatever is not as expected: vLLM's own behaviour, loudly.

Tried with vLLM 0.28 - 0.33 (`check_hooks`). All state of one client is its `Engines`, found in the client itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from multiprocessing import connection
from typing import Any

import numpy as np

from saga_rl.runtime.config import clock
from saga_rl.runtime.config.ours import METHOD
from saga_rl.runtime.routing.shared_table import STATUS, SharedTable, opened
from saga_rl.runtime.routing.silence import Silence
from saga_rl.runtime.routing.vllm_client import MINE, error_outputs, unfit

log = logging.getLogger("vllm.saga_rl")
DRAIN_S = 0.2
"""What a dead engine had sent is still read for so long; then its requests are sent again or fail."""
NOTICE_S = 60.0
"""An engine that said that it is dying and does not end for so long: vLLM's own behaviour."""


LOOK_S = 0.05
"""So often a server looks into the table."""
LAST_WORDS_S = 10.0
"""What an engine sent before it ended is read within so long."""


class EngineState(Enum):
    """LOST: its process ended; OUT: its requests were sent again or failed, too, and what still comes is dropped."""

    LIVE, LOST, OUT = range(3)


class RequestState(Enum):
    """SENT: not begun to answer; ASKED: besides, its engine is being asked to give it up (`stealing`); ABORTED: its
    client went away, and its engine has not said yet that it is done with it. One that answers is in none of them."""

    SENT, ASKED, ABORTED = range(3)


@dataclass
class Sent:
    """A request as it was sent (None once it cannot be sent again), and where it stands."""

    request: Any
    state: RequestState = RequestState.SENT


class Engines:
    """Which engines of one client live, what was sent to them and not begun to answer, and what asks them something.

    placement: what holds the router and the counters. Everything but `watch` runs in the client's event loop.
    """

    def __init__(self, client: Any, placement: Any) -> None:
        self.client: Callable[[], Any] = weakref.ref(client)
        self.placement = placement
        self.names: list[bytes] = list(client.core_engines)
        self.states = [EngineState.LIVE] * len(self.names)
        self.requests: dict[str, Sent] = {}
        """Those that have a state, by name."""
        self.calls: dict[int, set[asyncio.Future]] = {}
        self.dropped: set[asyncio.Future] = set()
        self.noticed = 0.0
        self.lost_s = -LAST_WORDS_S
        self.tasks: set[asyncio.Task] = set()
        self.stealing = False
        self.silence = Silence(len(self.names))
        self.hung_s: float | None = None
        """An engine that owes answers and says nothing for so long is ended; None: never."""
        self.end_engine: Callable[[int], object] = lambda w: None
        """Kill an engine's process; its death is then noticed like any other."""
        self.on_server_lost: Callable[[int], object] = lambda k: None

    @property
    def counts(self) -> Any:
        return self.placement.metrics.counts

    def rank(self, engine: bytes) -> int:
        """Place of an engine, by its name; ValueError if it is not one of this client's."""
        return self.names.index(engine)

    @property
    def lost(self) -> set[int]:
        """Engines whose processes ended."""
        return {w for w, state in enumerate(self.states) if state is not EngineState.LIVE}

    def live(self) -> list[int]:
        return [w for w, state in enumerate(self.states) if state is EngineState.LIVE]

    def unanswered(self, name: str) -> Any:
        """The request of that name, if it was sent and has not begun to answer; else None."""
        sent = self.requests.get(name)
        return None if sent is None or sent.state is RequestState.ABORTED else sent.request

    def asks(self, names: Iterable[str], asked: bool) -> None:
        """Their engine is being asked to give them up, or has answered."""
        for name in names:
            sent = self.requests.get(name)
            if sent is not None and sent.state is not RequestState.ABORTED:
                sent.state = RequestState.ASKED if asked else RequestState.SENT

    def keep(self, task: asyncio.Task) -> None:
        """Keep a task from the garbage collector until it is done."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def swallows(self) -> bool:
        """An engine says that it dies: whether that is another's business than vLLM's, which would end all."""
        now = time.monotonic()
        if len(self.live()) < 2 and now - self.lost_s > LAST_WORDS_S:
            return False
        self.noticed = now
        return True

    # ------------------------------------------------------------------ what passes by
    def sent(self, request: Any, in_flight: bool) -> None:
        """A request is about to be sent; a later part of a streamed input cannot be sent a second time."""
        if not in_flight and not request.resumable:
            self.requests[request.request_id] = Sent(request)

    def left(self, client: Any, names: list[str]) -> None:
        """Clients went away."""
        for name in names:
            self.requests.pop(name, None)
            if name in client.reqs_in_flight:
                self.requests[name] = Sent(None, RequestState.ABORTED)

    def came(self, outputs: Any) -> None:
        """Outputs came; leaves in them what vLLM should see."""
        self.silence.heard(outputs.engine_index)
        if self.states[outputs.engine_index] is EngineState.OUT:
            outputs.outputs, outputs.finished_requests, outputs.scheduler_stats = [], None, None
            return
        for o in outputs.outputs:
            if self.unanswered(o.request_id) is not None:
                del self.requests[o.request_id]
        if outputs.finished_requests:
            client, engine = self.client(), self.names[outputs.engine_index]
            keep = set()
            for name in outputs.finished_requests:
                sent = self.requests.get(name)
                if client.reqs_in_flight.get(name, engine) != engine or (
                        sent is not None and sent.state is RequestState.ASKED):
                    continue  # it is another engine's by now, or about to be
                self.requests.pop(name, None)
                keep.add(name)
            outputs.finished_requests = keep

    # ------------------------------------------------------------------ an engine dies
    def watch(self, processes: list[Any], stopped: Callable[[], bool], stock: Callable[[], None]) -> None:
        """Wait for engine processes to end, in a thread of its own. stock: vLLM's own way, which ends the server."""
        try:
            alive = {p.sentinel: w for w, p in enumerate(processes)}
            while alive and not stopped():
                for sentinel in connection.wait(list(alive), timeout=1):
                    w = alive.pop(sentinel)
                    if stopped():
                        return  # the server ends
                    self.noticed = 0.0
                    processes[w].join(1)  # so that its status is known
                    if not alive:
                        log.error("saga-rl: the last engine ended (number %d, status %s); so does the server", w,
                                  processes[w].exitcode)
                        return stock()
                    self._report_lost(w, processes[w].exitcode, stock)
                self._still_dying()
                if self.client() is None:
                    return
        except Exception:
            log.exception("saga-rl: cannot watch the engines; vLLM's own behaviour from here on")
            stock()

    def watch_table(self, table: SharedTable, stock: Callable[[], None]) -> None:
        """The same where there are several servers: their parent waits, and notes it in the table."""
        try:
            known: set[int] = set()
            missed: set[int] = set()
            while self.client() is not None and table.watched[0]:
                for k in sorted(set(np.flatnonzero(table.gone).tolist()) - missed):
                    missed.add(k)
                    self._loop().call_soon_threadsafe(self.server_lost, k, table)
                for w in sorted(set(np.flatnonzero(table.dead).tolist()) - known):
                    known.add(w)
                    self.noticed = 0.0
                    self._report_lost(w, int(table.dead[w]) - STATUS, stock)
                self._still_dying()
                time.sleep(LOOK_S)
        except Exception:
            log.exception("saga-rl: cannot watch the engines; vLLM's own behaviour from here on")
            stock()

    def _still_dying(self) -> None:
        if self.noticed and time.monotonic() - self.noticed > NOTICE_S:
            raise TimeoutError(f"an engine that said it was dying has not ended after {NOTICE_S:.0f} s")

    def _loop(self) -> Any:
        client = self.client()
        task = None if client is None else client.resources.output_queue_task
        if task is None:
            raise RuntimeError("a process ended before the server served")
        return task.get_loop()

    def _report_lost(self, w: int, status: Any, stock: Callable[[], None]) -> None:
        self._loop().call_soon_threadsafe(self.engine_lost, w, status, stock)

    def look_for_hung(self, looked_s: float) -> None:
        """End engines that owe something and have said nothing for `hung_s` while this loop ran. looked_s: seconds
        since the last look. One that carries out an order of vLLM's (new weights) is not hung."""
        client, after_s = self.client(), self.hung_s
        if after_s is None:
            return
        owing = {self.rank(e) for e in client.reqs_in_flight.values()}
        for w in self.silence.hung(owing, after_s, looked_s):
            if self.states[w] is EngineState.LIVE and len(self.live()) > 1:
                log.error("saga-rl: engine %d has said nothing for %.0f s while it owed answers; it is ended", w,
                          after_s)
                self.counts["engines found hung"] += 1
                self.end_engine(w)

    def server_lost(self, k: int, table: SharedTable) -> None:
        """API server k ended: what it had sent is nobody's, and engines need not go on with it. Every server that lives
        does this, since any of them may be the next."""
        self.counts["servers lost"] += 1
        log.error("saga-rl: API server %d ended (status %d); its requests are taken out of the engines", k,
                  int(table.gone[k]) - STATUS)
        table.loads[k], table.idle_s[k] = 0.0, -np.inf
        client = self.client()
        for w in self.live():
            self.keep(asyncio.get_running_loop().create_task(self._take_out(client, w, k)))
        self.on_server_lost(k)

    async def _take_out(self, client: Any, w: int, k: int) -> None:
        try:
            await client._call_utility_async(METHOD, "client gone", {"client": k}, engine=self.names[w])
        except Exception as e:
            log.warning("saga-rl: engine %d goes on with what API server %d had sent (%s)", w, k, e)

    def engine_lost(self, w: int, status: Any, stock: Callable[[], None]) -> None:
        """Engine w ended: nothing goes there from now on; its requests are sent again or fail `DRAIN_S` later."""
        try:
            self.states[w] = EngineState.LOST
            self.lost_s = time.monotonic()
            self.counts["engines lost"] += 1
            log.error("saga-rl: engine %d ended (status %s); %d of %d serve on", w, status, len(self.live()),
                      len(self.names))
            self.placement.router_for(self.client()).engine_lost(w)
            for call in self.calls.pop(w, ()):
                self.dropped.add(call)
                call.cancel()
            self.keep(asyncio.get_running_loop().create_task(self._resend_soon(w, stock)))
        except Exception:
            log.exception("saga-rl: cannot take engine %d out; vLLM's own behaviour from here on", w)
            stock()

    async def _resend_soon(self, w: int, stock: Callable[[], None]) -> None:
        try:
            await asyncio.sleep(DRAIN_S)
            await self.resend_or_fail(w)
        except Exception:
            log.exception("saga-rl: cannot take engine %d out; vLLM's own behaviour from here on", w)
            stock()

    async def resend_or_fail(self, w: int) -> None:
        """Send again what had not begun to answer at engine w, and fail the rest with vLLM's own error."""
        client, now = self.client(), clock.seconds()
        self.states[w] = EngineState.OUT
        router = self.placement.router_for(client)
        again: list[str] = []
        failed: list[str] = []
        for name in [n for n, engine in client.reqs_in_flight.items() if engine == self.names[w]]:
            self.forget(client, name)
            router.gone(name, now)
            if self.unanswered(name) is not None:
                again.append(name)
            elif self.requests.pop(name, None) is None:  # else its client has gone
                failed.append(name)
        self.fail(client, w, failed)
        for name in again:
            await self.send_again(client, name)
        log.error("saga-rl: engine %d is out: %d requests sent again, %d failed in the middle of an answer", w,
                  len(again), len(failed))

    def forget(self, client: Any, name: str) -> None:
        """Take a request out of vLLM's own books."""
        engine = client.reqs_in_flight.pop(name, None)
        if engine is not None:
            client.engine_inflight[engine] -= 1

    def fail(self, client: Any, w: int, names: list[str]) -> None:
        """Give the clients of requests vLLM's error for a request that failed inside an engine."""
        if names:
            self.counts["requests failed with an engine"] += len(names)
            client.outputs_queue.put_nowait(error_outputs(w, names))

    async def send_again(self, client: Any, name: str) -> None:
        """Send a request that is nowhere, unless its client has gone in the meantime."""
        request = self.unanswered(name)
        if request is None:
            return
        try:
            await client.add_request_async(request)
            self.counts["requests sent again"] += 1
        except Exception:
            log.exception("saga-rl: request %s cannot be sent again", name)
            self.requests.pop(name, None)
            self.forget(client, name)
            self.placement.router_for(client).gone(name, clock.seconds())
            self.fail(client, self.live()[0] if self.live() else 0, [name])

    def stay_off(self, client: Any, request: Any, engine: bytes) -> bytes:
        """The engine to send to when `engine` was chosen: if that is lost, the live one with the fewest requests."""
        if self.rank(engine) not in self.lost or not self.live():
            return engine
        better = min((self.names[w] for w in self.live()), key=lambda e: client.engine_inflight[e])
        client.engine_inflight[engine] -= 1
        client.engine_inflight[better] += 1
        client.reqs_in_flight[request.request_id] = better
        flight = self.placement.router_for(client).flights.get(request.request_id)
        if flight is not None:
            self.placement.router_for(client).book(request.request_id, flight.served.hints, flight.served.prompt_tokens,
                                                   self.rank(better), clock.seconds())
        return better


def begin(client: Any, placement_of: Callable[[Any], Any], stock: Callable[[], None]) -> bool:
    """Watch the engines of `client` in vLLM's place; False, with the reason logged, where that is not ours to do."""
    why = unfit(client)
    if why is not None:
        log.warning("saga-rl: an engine that dies takes the server down, as vLLM does: %s", why)
        return False
    placement = placement_of(client)
    if placement is None:
        return False
    mine, manager, table = Engines(client, placement), client.resources.engine_manager, None
    mine.hung_s = placement.config.hung_s
    if client.client_count > 1:
        table = opened()
        assert table is not None  # else it is unfit
    client.__dict__[MINE] = mine
    setattr(client.resources, MINE, mine)
    watch: Callable[[], None]
    if table is not None:
        watch = partial(mine.watch_table, table, partial(table.watched.__setitem__, 0, 0))
        mine.end_engine = lambda w: table.hung.__setitem__(w, 1)
    else:
        processes = list(manager.processes)
        watch = partial(mine.watch, processes, manager.manager_stopped.is_set, stock)
        mine.end_engine = lambda w: processes[w].kill()
    threading.Thread(target=watch, daemon=True, name="saga-rl engines").start()
    return True
