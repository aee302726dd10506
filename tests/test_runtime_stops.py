"""Answers that end by a stop string: vLLM's API server aborts them, and they have finished all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines_kit import client, restored
from engines_kit import request as sent_request
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.policies.state import chains as ch
from saga_rl.runtime.config.ours import SCHEDULER, STOPPED
from saga_rl.runtime.engine.scheduler import SagaSyncScheduler
from saga_rl.runtime.routing.stop_strings import StoppedName, hook_stops

assert vllm is not None
from vllm.v1.engine import EngineCoreRequestType  # noqa: E402
from vllm.v1.engine.core_client import AsyncMPClient, DPLBAsyncMPClient, SyncMPClient  # noqa: E402
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

PROMPT = list(range(6 * BLOCK + 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def answering(folder: Path, tmp_path: Path | None = None, **hints: Any) -> tuple[Any, int]:
    """A scheduler in which request r of session s has two tokens of its answer, and the row of its chain."""
    saga = {"policy": "likely", **({} if tmp_path is None else {"record": str(tmp_path / "t.parquet")})}
    s = make_scheduler(SagaSyncScheduler, folder, blocks=40, clock=Clock(), saga=saga)
    s.add_request(make_request("r", PROMPT, session="s", output=100, **hints))
    for _ in range(2):
        step(s)
    return s, s.served["r"].chain


def test_a_stop_string_ends_a_step_like_any_other(folder: Path, tmp_path: Path) -> None:
    s, c = answering(folder, tmp_path)
    s.finish_requests(["r", STOPPED + "r"], RequestStatus.FINISHED_ABORTED)
    row = s.tracker.chains[c]
    assert (row[ch.STEPS], row[ch.CONTEXT], row[ch.ENDED]) == (1, len(PROMPT) + 2, 0)
    assert not s.has_unfinished_requests() and "r" not in s.served
    s.shutdown()
    assert s.recorder.counts["steps"] == 1 and not sum(s.recorder.lost.values())


def test_the_last_step_of_a_session_may_end_by_a_stop_string(folder: Path) -> None:
    s, c = answering(folder, final=1)
    s.finish_requests(["r", STOPPED + "r"], RequestStatus.FINISHED_ABORTED)
    assert s.tracker.chains[c, ch.ENDED] == 1


def test_a_client_that_goes_ends_no_step_but_what_was_computed_is_not_worthless(folder: Path) -> None:
    """The same prompt is likely to come again; a session with a longer silence goes before it."""
    s, c = answering(folder, final=1)
    s.finish_requests(["r"], RequestStatus.FINISHED_ABORTED)
    row = s.tracker.chains[c]
    assert (row[ch.STEPS], row[ch.ENDED]) == (0, 0)
    assert row[ch.CONTEXT] == len(PROMPT) + 1  # the last token's KV was not computed
    assert ch.useful_tokens(row) >= s.block_queue.runs.owned_by(c) * BLOCK > 0


def test_marks_of_what_is_not_there_do_nothing(folder: Path) -> None:
    s, _ = answering(folder)
    s.finish_requests([STOPPED + "other", "another"], RequestStatus.FINISHED_ABORTED)
    assert "r" in s.requests
    s.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert not s.requests
    drain(s)


# ---------------------------------------------------------------------- the API server
@pytest.fixture
def hooks() -> Any:
    with restored(OutputProcessor, AsyncMPClient, SyncMPClient, DPLBAsyncMPClient):
        yield


def stops_in(names: list[str]) -> list[str]:
    """What the output processor asks to abort where the answers of `names` have come to a stop string."""
    with restored(OutputProcessor):
        OutputProcessor.process_outputs = lambda self, *a: OutputProcessorOutput([], list(names))
        hook_stops(lambda _: None)
        return OutputProcessor.process_outputs(SimpleNamespace(), []).reqs_to_abort


@pytest.mark.usefixtures("hooks")
@pytest.mark.parametrize("ours", [True, False])
def test_the_engine_is_told_which_aborts_are_none(ours: bool) -> None:
    sent: list[Any] = []
    AsyncMPClient._send_input = lambda self, kind, request, engine=None: sent.append((kind, request))
    SyncMPClient._send_input = lambda self, kind, request: sent.append((kind, request))
    stopped = stops_in(["a"])
    assert stopped == ["a"] and type(stopped[0]) is StoppedName
    hook_stops(lambda _: None)
    config = SimpleNamespace(scheduler_config=SimpleNamespace(scheduler_cls=SCHEDULER if ours else None))
    for cls in (AsyncMPClient, SyncMPClient):
        c: Any = object.__new__(cls)
        c.vllm_config = config
        c._send_input(EngineCoreRequestType.ABORT, [*stopped, "b"])
        c._send_input(EngineCoreRequestType.ABORT, ["b"])
        whole = ["a", "b", STOPPED + "a"] if ours else ["a", "b"]
        assert [names for _, names in sent] == [whole, ["b"]]
        assert all(type(name) is str for _, names in sent for name in names)
        sent.clear()


@pytest.mark.usefixtures("hooks")
def test_the_router_counts_a_stop_string_as_an_end_and_a_client_that_goes_as_none() -> None:
    async def play() -> None:
        from engines_kit import outputs

        c = client()
        c.vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        hook_stops(lambda client: client.__dict__["saga_engines"].placement)
        placement = c.__dict__["saga_engines"].placement
        for name in ("a", "b"):
            await c.add_request_async(sent_request(name, session=name))
        for engine in (0, 1):
            await c.process_engine_outputs(c, outputs(engine, {"a": 3, "b": 3}))
        await c.abort_requests_async([StoppedName("a"), "b"])
        for engine in (0, 1):
            await c.process_engine_outputs(c, outputs(engine, finished={"a", "b"}))
        rows = placement.router.tracker
        steps = {name: rows.chains[rows.chain_of(name), ch.STEPS] for name in ("a", "b")}
        assert steps == {"a": 1, "b": 0} and not placement.router.flights
        assert all(rows.chains[rows.chain_of(name), ch.CONTEXT] >= 50 for name in ("a", "b"))

    asyncio.run(play())
