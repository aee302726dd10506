"""Asks the engines for their numbers in the background, so that nobody who asks for them makes an engine wait.

An engine that has not answered its last question is not asked again until it does: it is skipped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from saga_rl.runtime.server import control, events

log = logging.getLogger("vllm.saga_rl")


class Poller:
    """The last answer of each engine. engine_client: vLLM's; placement: the router's counters, None if there is none.

    latest: answers by engine; answered_s: when they came (monotonic); unanswered: questions that an engine did not
    answer within `every_s`, or answered with an error.
    """

    def __init__(self, engine_client: Any, every_s: float, placement: Any = None) -> None:
        self.engine_client, self.every_s, self.placement = engine_client, every_s, placement
        self.latest: dict[int, dict[str, Any]] = {}
        self.answered_s: dict[int, float] = {}
        self.unanswered: Counter[int] = Counter()
        self.rounds = 0
        self.on_answers: Callable[[], object] = lambda: None
        self._asked: dict[int, asyncio.Task] = {}
        self._task: asyncio.Task | None = None
        self._quiet = False

    def quiet(self) -> None:
        """The server stops: engines that do not answer any more are no news."""
        self._quiet = True

    def start(self) -> None:
        """Ask from now on, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._loop(), name="saga-rl poller")

    async def ask(self, patience_s: float | None = None, anew: bool = False) -> None:
        """One round: ask every engine that lives and owes no answer; wait for at most `patience_s`. anew: an answer
        that is owed may be older than what the caller did, so wait for it and ask once more."""
        patience_s = self.every_s if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        if anew and self._asked:
            await asyncio.wait(list(self._asked.values()), timeout=patience_s)
            self._collect(late=False)
        engines = control.live_engines(self.engine_client)
        for engine in set(self.latest) - set(engines):
            self.latest.pop(engine)
        for engine in engines:
            if engine not in self._asked:
                self._asked[engine] = asyncio.get_running_loop().create_task(
                    control.ask(self.engine_client, engine, "snapshot", {}))
        if self._asked:
            await asyncio.wait(list(self._asked.values()), timeout=max(0.0, deadline - time.monotonic()))
        self._collect(late=True)
        self.rounds += 1
        self.on_answers()

    def _collect(self, late: bool) -> None:
        """Take the answers that came; late: count those that did not."""
        engines = control.live_engines(self.engine_client)
        for engine, task in list(self._asked.items()):
            if not task.done():
                if late:
                    self._missed(engine, "no answer in time")
                if engine not in engines:
                    self._asked.pop(engine).cancel()
                continue
            del self._asked[engine]
            answer = {"error": "cancelled"} if task.cancelled() else task.result()
            if "error" in answer:
                self._missed(engine, answer["error"])
            elif engine in engines:
                self._came(engine, answer)

    def _missed(self, engine: int, why: str) -> None:
        self.unanswered[engine] += 1
        n = self.unanswered[engine]
        if self._quiet:
            return
        if n in (1, 10, 100) or n % 1000 == 0:
            log.warning("saga-rl: engine %d gave no numbers: %s (%d times so far)", engine, why, n)
        events.emit("engine unanswered", engine=engine, cause=why)

    def _came(self, engine: int, answer: dict[str, Any]) -> None:
        before = self.latest.get(engine, {})
        self.latest[engine], self.answered_s[engine] = answer, time.monotonic()
        if events.enabled():
            changed = {k: v for k, v in answer.items()
                       if isinstance(v, int | float) and not isinstance(v, bool) and v != before.get(k)}
            if changed:
                events.emit("numbers", engine=engine, **{"changed": changed})

    def _look_for_hung(self, since: float) -> None:
        """A round that took longer than it should was held up here, not there."""
        mine = getattr(control.client_of(self.engine_client), "__dict__", {}).get("saga_engines")
        if mine is not None and not self._quiet:
            mine.look_for_hung(min(time.monotonic() - since, 2.0 * self.every_s + 1.0))

    async def _loop(self) -> None:
        looked = time.monotonic()
        while True:
            try:
                await self.ask()
                self._look_for_hung(looked)
                looked = time.monotonic()
            except Exception:
                log.exception("saga-rl: engines cannot be asked for their numbers; tried again in %g s", self.every_s)
            await asyncio.sleep(self.every_s)
