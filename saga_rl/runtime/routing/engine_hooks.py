"""Where `engines` takes hold of vLLM's data-parallel client. Every method is checked before any is replaced.

A client that has no `Engines` (not ours, one engine, engines elsewhere) goes through each of these untouched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from saga_rl.errors import UserError
from saga_rl.runtime.config.ours import METHOD
from saga_rl.runtime.routing.vllm_client import MINE, check_hooks

log = logging.getLogger("vllm.saga_rl")


def install(placement_of: Callable[[Any], Any]) -> bool:
    """Replace the methods of vLLM's client class, over those of `placement`. placement_of: the `Placement` of a client,
    None if it is not to be touched. False, loudly, if this vLLM is not as expected: then nothing is replaced."""
    try:
        check_hooks()
    except (UserError, ImportError) as e:
        log.error("saga-rl: an engine that dies takes the server down, as vLLM does: %s", e)
        return False
    from vllm.v1.engine.core_client import BackgroundResources, DPLBAsyncMPClient

    _lifecycle(DPLBAsyncMPClient, placement_of)
    _requests(DPLBAsyncMPClient)
    _questions(DPLBAsyncMPClient)
    _last_words(BackgroundResources)
    return True


def _lifecycle(cls: Any, placement_of: Callable[[Any], Any]) -> None:
    stock_start = cls.start_engine_core_monitor

    def start_engine_core_monitor(self: Any) -> None:
        from saga_rl.runtime.routing.engines import begin

        try:
            if begin(self, placement_of, lambda: stock_start(self)):
                return
        except Exception:
            log.exception("saga-rl: cannot watch the engines; vLLM does")
        stock_start(self)

    cls.start_engine_core_monitor = start_engine_core_monitor


def _requests(cls: Any) -> None:
    stock_add, stock_abort = cls.add_request_async, cls.abort_requests_async
    stock_choose, stock_outputs = cls.get_core_engine_for_request, cls.process_engine_outputs

    def get_core_engine_for_request(self: Any, request: Any) -> Any:
        mine = self.__dict__.get(MINE)
        if mine is None or not mine.lost or request.request_id in self.reqs_in_flight:
            return stock_choose(self, request)
        if request.data_parallel_rank in mine.lost:
            request.data_parallel_rank = None
            mine.counts["ranks of lost engines overridden"] += 1
        return mine.stay_off(self, request, stock_choose(self, request))

    async def add_request_async(self: Any, request: Any) -> None:
        mine = self.__dict__.get(MINE)
        if mine is None:
            return await stock_add(self, request)
        from saga_rl.runtime.routing import stealing

        stealing.begin(self, mine)
        mine.sent(request, request.request_id in self.reqs_in_flight)
        try:
            await stock_add(self, request)
        except BaseException:
            mine.requests.pop(request.request_id, None)
            raise

    async def abort_requests_async(self: Any, request_ids: list[str]) -> None:
        mine = self.__dict__.get(MINE)
        if mine is not None:
            mine.left(self, request_ids)
        await stock_abort(self, request_ids)

    async def process_engine_outputs(self: Any, outputs: Any) -> None:
        mine = self.__dict__.get(MINE)
        if mine is not None:
            mine.came(outputs)
        await stock_outputs(self, outputs)

    cls.get_core_engine_for_request = get_core_engine_for_request
    cls.add_request_async = add_request_async
    cls.abort_requests_async = abort_requests_async
    cls.process_engine_outputs = staticmethod(process_engine_outputs)


def _questions(cls: Any) -> None:
    """What an engine is asked while it dies, or afterwards, fails at once; what all are asked goes to those that live.
    """
    stock_call, stock_one = cls._call_utility_async, cls.call_utility_async
    stock_all = getattr(cls, "call_utility_all_async", None)  # not in 0.28

    async def _call_utility_async(self: Any, method: str, *args: Any, engine: bytes) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        mine = self.__dict__.get(MINE)
        if mine is None:
            return await stock_call(self, method, *args, engine=engine)
        w = mine.rank(engine)
        if w in mine.lost:
            raise EngineDeadError()
        call = asyncio.ensure_future(stock_call(self, method, *args, engine=engine))
        mine.calls.setdefault(w, set()).add(call)
        order = method != METHOD
        mine.silence.orders[w] += order
        try:
            answer = await call
            mine.silence.heard(w)
            return answer
        except asyncio.CancelledError:
            if call in mine.dropped:
                raise EngineDeadError() from None
            raise
        finally:
            mine.silence.orders[w] -= order
            mine.dropped.discard(call)
            mine.calls.get(w, set()).discard(call)

    async def live(self: Any, method: str, *args: Any) -> list[Any]:
        mine = self.__dict__[MINE]
        return await asyncio.gather(*(self._call_utility_async(method, *args, engine=mine.names[w])
                                      for w in mine.live()))

    async def call_utility_all_async(self: Any, method: str, *args: Any) -> list[Any]:
        mine = self.__dict__.get(MINE)
        assert stock_all is not None
        return await (live(self, method, *args) if mine is not None and mine.lost else stock_all(self, method, *args))

    async def call_utility_async(self: Any, method: str, *args: Any) -> Any:
        mine = self.__dict__.get(MINE)
        if mine is not None and mine.lost:
            return (await live(self, method, *args))[0]
        return await stock_one(self, method, *args)

    cls._call_utility_async = _call_utility_async
    cls.call_utility_async = call_utility_async
    if stock_all is not None:
        cls.call_utility_all_async = call_utility_all_async


def _last_words(cls: Any) -> None:
    """An engine that fails by an exception says so, without its number, and ends. vLLM's client takes that for the end
    of all; here it is read as an empty message, and the end of the process is what counts."""
    stock = cls.validate_alive

    def validate_alive(self: Any, frames: Any) -> None:
        mine = getattr(self, MINE, None)
        if mine is not None and len(frames) == 1:
            import msgspec
            import zmq
            from vllm.v1.engine import EngineCoreOutputs
            from vllm.v1.engine.core import EngineCoreProc

            if frames[0].buffer == EngineCoreProc.ENGINE_CORE_DEAD and mine.swallows():
                frames[:] = [zmq.Frame(msgspec.msgpack.encode(EngineCoreOutputs()))]
                return
        stock(self, frames)

    cls.validate_alive = validate_alive
