"""vLLM's own data-parallel client over engines that are not there: what it sends is written down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from saga_rl.policies.base import Policy
from saga_rl.policies.registry import make
from saga_rl.runtime.config.settings import SagaConfig


@contextmanager
def restored(*classes: type) -> Iterator[None]:
    """Put every attribute of the classes back as it was."""
    before = [dict(vars(c)) for c in classes]
    try:
        yield
    finally:
        for c, kept in zip(classes, before, strict=True):
            for name in set(vars(c)) - set(kept):
                delattr(c, name)
            for name, value in kept.items():
                if vars(c)[name] is not value:
                    setattr(c, name, value)


def install_placement(policy: Policy, config: SagaConfig) -> Any:
    """Every client made in this process uses `policy` from now on, whatever its own configuration says."""
    from saga_rl.runtime.config import versions
    from saga_rl.runtime.routing import engine_hooks
    from saga_rl.runtime.routing.client_hooks import hook_client
    from saga_rl.runtime.routing.placement import Placement

    versions.check_router_hooks()
    placement = Placement(policy, config)
    placement.begin()
    hook_client(lambda _: placement)
    engine_hooks.install(lambda _: placement)
    return placement


class Socket:
    """What was sent, as (engine, kind of message, the message's frames)."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes, Any]] = []

    def send_multipart(self, frames: Any, copy: bool = False) -> asyncio.Future:
        self.sent.append((frames[0], frames[1], frames[2:]))
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def client(engines: int = 2, policy: str = "sticky") -> Any:
    """A client of vLLM's class, with our hooks installed over a placement policy. Call inside an event loop."""
    from vllm.v1.engine.core_client import DPLBAsyncMPClient
    from vllm.v1.serial_utils import MsgpackEncoder

    from saga_rl.runtime.routing.engines import Engines
    from saga_rl.runtime.routing.vllm_client import MINE

    with patch("saga_rl.runtime.engine.metrics.Metrics.start"):  # no thread of its own for each client of a test
        placement = install_placement(make("placement", policy), SagaConfig(policy="lru", prefill_tokens_per_s=1000.0))
    c: Any = object.__new__(DPLBAsyncMPClient)
    c.core_engines = [w.to_bytes(2, "little") for w in range(engines)]
    c.reqs_in_flight, c.engine_inflight, c.streaming_reqs = {}, Counter(), set()
    c.lb_engines = [[0, 0, 0.0] for _ in range(engines)]
    c.client_count, c.client_index, c.eng_start_index, c.current_wave = 1, 0, 0, 0
    c.engines_running = True
    c.vllm_config = SimpleNamespace(
        cache_config=SimpleNamespace(num_gpu_blocks=100 * engines, block_size=16),
        scheduler_config=SimpleNamespace(max_num_seqs=8), model_config=SimpleNamespace(is_moe=False),
        parallel_config=SimpleNamespace(enable_elastic_ep=False), kv_transfer_config=None)
    task = asyncio.get_running_loop().create_future()  # stands for vLLM's task that reads outputs
    c.resources = SimpleNamespace(output_queue_task=task, stats_update_task=task, engine_dead=False)
    c.utility_results, c.outputs_queue = {}, asyncio.Queue()
    c.input_socket, c.encoder = Socket(), MsgpackEncoder()
    c.__dict__[MINE] = Engines(c, placement)
    c.__dict__[MINE].stealing = True  # nobody looks for something to steal unless a test does
    return c


def request(name: str, session: str | None = None, rank: int | None = None, tokens: int = 50, **kwargs: Any) -> Any:
    """A request as vLLM's frontend sends it."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=name, prompt_token_ids=[1] * tokens, mm_features=None, sampling_params=SamplingParams(),
        pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=rank,
        session_id=session, **kwargs)


def outputs(engine: int, tokens: dict[str, int] | None = None, finished: set[str] | None = None) -> Any:
    """What an engine sends: that many tokens of each answer, and which requests it is done with."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    finished = finished or set()
    return EngineCoreOutputs(engine_index=engine, finished_requests=finished or None, outputs=[
        EngineCoreOutput(request_id=name, new_token_ids=[7] * n,
                         finish_reason=FinishReason.LENGTH if name in finished else None)
        for name, n in (tokens or {}).items()])


def added(c: Any, start: int = 0) -> list[tuple[int, str]]:
    """(engine, request) of everything that was sent to be served, from message `start` on."""
    import msgspec
    from vllm.v1.engine import EngineCoreRequestType

    return [(int.from_bytes(engine, "little"), msgspec.msgpack.decode(bytes(frames[0]))[0])
            for engine, kind, frames in c.input_socket.sent[start:] if kind == EngineCoreRequestType.ADD.value]
