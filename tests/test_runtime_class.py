"""Which of our two scheduler classes runs is what vLLM decides, however the server was started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runtime_kit import make_config, vllm

from saga_rl.runtime.config.ours import SCHEDULER, SYNC_SCHEDULER
from saga_rl.runtime.launch import startup

assert vllm is not None
from vllm.config import ParallelConfig, SpeculativeConfig, VllmConfig  # noqa: E402
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def drafts(folder: Path) -> dict[str, Any]:
    model = make_config(folder).model_config
    return {"speculative_config": SpeculativeConfig(
        method="ngram", num_speculative_tokens=3, prompt_lookup_max=4, prompt_lookup_min=2, target_model_config=model,
        target_parallel_config=ParallelConfig())}


FEATURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nothing said": lambda folder: {},
    "--no-async-scheduling": lambda folder: {"asynchronous": False},
    "ngram drafts": drafts,
    "a pipeline": lambda folder: {"parallel_config": ParallelConfig(pipeline_parallel_size=2,
                                                                    distributed_executor_backend="mp")},
}


def both(folder: Path, feature: str, named: str) -> tuple[VllmConfig, VllmConfig]:
    """(vLLM's own configuration, ours with class `named`) under the feature."""
    return (make_config(folder, **FEATURES[feature](folder)),
            make_config(folder, scheduler=named, **FEATURES[feature](folder)))


@pytest.mark.parametrize("named", [SCHEDULER, SYNC_SCHEDULER])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("gpu", [False, True])
def test_the_class_follows_what_vllm_decides(folder: Path, feature: str, named: str, gpu: bool) -> None:
    """On a CPU vLLM turns asynchronous scheduling off; `gpu`: it leaves its decision as it was."""
    stock, ours = both(folder, feature, named)
    assert stock.scheduler_config.async_scheduling == ours.scheduler_config.async_scheduling
    if gpu and feature == "nothing said":
        stock.scheduler_config.async_scheduling = ours.scheduler_config.async_scheduling = True
    startup.checked(ours)
    want, have = stock.scheduler_config.get_scheduler_cls(), ours.scheduler_config.get_scheduler_cls()
    assert want in (Scheduler, AsyncScheduler)
    assert issubclass(have, want) and issubclass(have, AsyncScheduler) == (want is AsyncScheduler)
    assert (want is AsyncScheduler) == stock.scheduler_config.async_scheduling  # for which features, releases differ
    assert feature != "--no-async-scheduling" or want is Scheduler
    assert not gpu or feature != "nothing said" or want is AsyncScheduler


def test_a_class_made_of_ours_is_left_to_who_made_it(folder: Path) -> None:
    config = make_config(folder, scheduler=SCHEDULER)

    from saga_rl.runtime.engine.scheduler import SagaScheduler

    class Mine(SagaScheduler):
        pass

    config.scheduler_config.scheduler_cls = Mine
    startup.checked(config)
    assert config.scheduler_config.scheduler_cls is Mine
