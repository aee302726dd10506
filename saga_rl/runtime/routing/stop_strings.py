"""An answer that ends by a stop string has finished, and its engine is told so.

vLLM finds stop strings where text is made, in the API server, and can only tell the engine to abort the request. Here
such aborts are told apart: their names are of a type of their own from the output processor to the client, which sends
each with a mark (`ours.STOPPED`) behind it. Tried with vLLM 0.28 - 0.33: other schedulers ignore names that they do not
know, and the mark comes in the same message as the name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from saga_rl.runtime.config.ours import STOPPED, is_ours


class StoppedName(str):
    """The name of a request whose answer ended by a stop string."""

    __slots__ = ()


def hook_stops(placement_of: Callable[[Any], Any]) -> None:
    """Replace the output processor's method and the clients' sending. placement_of: the `Placement` of a client, None
    if it has none."""
    from vllm.v1.engine.core_client import AsyncMPClient, SyncMPClient
    from vllm.v1.engine.output_processor import OutputProcessor

    _tell_apart(OutputProcessor)
    for client in (AsyncMPClient, SyncMPClient):
        _send_marks(client, placement_of)


def _tell_apart(processor: Any) -> None:
    stock = processor.process_outputs

    @functools.wraps(stock)
    def process_outputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = stock(self, *args, **kwargs)
        if out.reqs_to_abort:
            out.reqs_to_abort = [StoppedName(name) for name in out.reqs_to_abort]
        return out

    processor.process_outputs = process_outputs


def _send_marks(client: Any, placement_of: Callable[[Any], Any]) -> None:
    from vllm.v1.engine import EngineCoreRequestType

    stock = client._send_input

    @functools.wraps(stock)
    def _send_input(self: Any, request_type: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if request_type == EngineCoreRequestType.ABORT:
            request = marked(self, request, placement_of)
        return stock(self, request_type, request, *args, **kwargs)

    client._send_input = _send_input


def marked(client: Any, names: list[str], placement_of: Callable[[Any], Any]) -> list[str]:
    """The names as they are sent: plain, those that stopped by a string followed by their mark."""
    stopped = [str(name) for name in names if isinstance(name, StoppedName)]
    if not stopped:
        return names
    plain = [str(name) for name in names]
    if not is_ours(client.vllm_config):
        return plain
    placement = placement_of(client)
    if placement is not None:
        placement.stopped(stopped)
    return [*plain, *(STOPPED + name for name in stopped)]
