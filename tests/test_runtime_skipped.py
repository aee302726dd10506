"""Requests that vLLM passes over in each step: an adapter beyond `max_loras`, a grammar that is not ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runtime_kit import BLOCK, Clock, drain, make_request, make_scheduler, step, vllm

from saga_rl.runtime.engine.scheduler import SagaSyncScheduler

assert vllm is not None
from vllm.config import LoRAConfig  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

MANY = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def scheduler(folder: Path, policy: str | dict[str, str] = "likely", **saga: Any) -> Any:
    """One adapter at a time."""
    s = make_scheduler(SagaSyncScheduler, folder, clock=Clock(), saga={"policy": policy, **saga}, max_len=4096,
                       lora_config=LoRAConfig(max_loras=1, max_lora_rank=8, max_cpu_loras=4))
    if hasattr(s, "skipped_waiting"):
        s.shutdown()
        pytest.skip("this vLLM keeps what it passes over in a queue of its own, which is asked first")
    return s


class Scored:
    """Counts the rows that the ordering policy scores."""

    def __init__(self, queue: Any) -> None:
        self.rows, stock = 0, queue.guard.scores

        def scores(rows: Any, n: int) -> Any:
            self.rows += n
            return stock(rows, n)

        queue.guard.scores = scores


def passed_over(folder: Path, policy: str | dict[str, str], how: str) -> tuple[Any, Scored]:
    s = scheduler(folder, policy)
    s.add_request(make_request("runs", [1] * 2 * BLOCK, session="runs", output=900, adapter=1))
    step(s)
    s.clock.now += 1
    for k in range(MANY):
        r = make_request(f"w{k}", [2 + k] * 2 * BLOCK, session=f"w{k}", adapter=2 if how == "adapter" else 0)
        if how == "grammar":
            r.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            r.structured_output_request = type("Pending", (), {"grammar": None, "is_grammar_ready": False})()
        s.add_request(r)
    return s, Scored(s.waiting)


@pytest.mark.parametrize("how", ["adapter", "grammar"])
@pytest.mark.parametrize("policy", ["likely", {"ordering": "vtc"}])
def test_what_is_passed_over_is_not_scored_anew(folder: Path, policy: str | dict[str, str], how: str) -> None:
    s, scored = passed_over(folder, policy, how)
    before = [r.request_id for r in s.waiting]
    for _ in range(5):  # within one epoch
        scored.rows = 0
        step(s)
        assert scored.rows <= MANY  # a policy that ranks at each choice ranks once where nothing happens in between
        if policy == "likely":
            assert scored.rows == 0
        assert [r.request_id for r in s.waiting] == before and len(s.waiting) == MANY


def test_new_requests_stand_where_they_belong_among_those_passed_over(folder: Path) -> None:
    s, scored = passed_over(folder, "likely", "adapter")
    step(s)
    s.clock.now += 1
    s.add_request(make_request("later", [7] * BLOCK, session="later", adapter=2))
    s.add_request(make_request("old session", [1] * 3 * BLOCK, session="runs", adapter=2))
    step(s)
    names = [r.request_id for r in s.waiting]
    assert (names[0], names[-1], len(names)) == ("old session", "later", MANY + 2)
    assert scored.rows == 2
    s.finish_requests("w7", RequestStatus.FINISHED_ABORTED)
    step(s)
    assert "w7" not in [r.request_id for r in s.waiting] and len(s.waiting) == MANY + 1


def test_a_starving_request_gets_its_adapter_although_others_keep_coming(folder: Path) -> None:
    """vLLM passes it over as long as one that runs uses another adapter: without an end."""
    s = scheduler(folder, "likely", starve_s=5.0)
    s.add_request(make_request("a0", [1] * BLOCK, session="a0", output=20, adapter=1))
    step(s)
    s.add_request(make_request("other", [9] * BLOCK, session="other", output=4, adapter=2))
    done, n = [], 1
    for _ in range(300):
        if len(s.requests) < 4:
            s.add_request(make_request(f"a{n}", [1 + n] * BLOCK, session=f"a{n}", output=20, adapter=1))
            n += 1
        done += step(s)
        s.clock.now += 0.05
        if "other" in done:
            break
    assert "other" in done and s.metrics.counts["held for an adapter"] > 0
    assert s.clock.now - 1000 < 5 + 2 * 20 * 0.05 + 1
    drain(s, s.clock)


def test_without_adapters_nobody_is_held_for_one(folder: Path) -> None:
    s = scheduler(folder, "likely", starve_s=1.0)
    s.add_request(make_request("a0", [1] * BLOCK, session="a0", output=60, adapter=1))
    step(s)
    s.add_request(make_request("late", [9] * BLOCK, session="late", adapter=2))
    s.clock.now += 5
    s.add_request(make_request("plain", [8] * BLOCK, session="plain"))
    step(s)
    assert "plain" in [r.request_id for r in s.running]
    drain(s, s.clock)
