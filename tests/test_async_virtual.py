"""vLLM's real scheduler with our policies in virtual time (`runtime.emulate.virtual`) beside the simulator: equal to
the last step where the runtime is given what the simulator supposes, close where it has what it has in service."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.aeg.scale import scale_lengths
from saga_rl.aeg.trace import Trace
from saga_rl.policies.presets import preset
from saga_rl.replay.drive import DriveOptions, _Drive
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile

virtual = pytest.importorskip("saga_rl.runtime.emulate.virtual", reason="vLLM is not installed",
                              exc_type=ImportError)
pytestmark = pytest.mark.vllm
PROFILE = CostProfile("unit", base_s=0.01, per_prefill_token_s=1e-4, per_kv_token_s=1e-7, per_seq_s=1e-4,
                      per_attn_s=1e-8, per_context_s=1e-7, max_batched_tokens=256)


def sessions(seed: int = 5, n: int = 10) -> Trace:
    """Tools are named, and take from a tenth of a second to minutes, so that it matters which one runs."""
    return scale_lengths(generate("swe-bench", seed, sessions=n, rate_per_min=60), 1 / 32, time_factor=1 / 16)


def config(trace: Trace, workers: int = 1, contexts: float = 2.0, population: int = 6) -> SimConfig:
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    return SimConfig(workers=workers, kv_tokens=int(contexts * longest), max_num_seqs=16, profile=PROFILE,
                     population=population, end_hint=False, expiry_s=30.0)


def steps_that_differ(trace: Trace, sim: SimConfig, played: virtual.Played, name: str) -> int:
    steps = simulate(trace, sim, preset(name), slo=False).steps
    return int((np.abs(steps["done_s"] - played.steps["done_s"]) > 1e-5).sum()
               + (steps["cached_tokens"] != played.steps["cached_tokens"]).sum())


@pytest.mark.parametrize("name", ["lru", "likely"])
def test_told_what_the_simulator_supposes_the_real_scheduler_does_the_same(name):
    """One batch at a time, requests told when they come, the called tool named with the request that calls it."""
    trace = sessions()
    sim = config(trace)
    played = virtual.play(trace, virtual.VirtualConfig(sim, asynchronous=False, at_once=True, next_tool=True),
                          preset(name))
    assert played.counts["evicted/idle"] > 0
    assert steps_that_differ(trace, sim, played, name) == 0


def test_tools_that_are_named_afterwards_serve_as_well_as_tools_that_nobody_names():
    """Returns were once counted under the name that came with them and ends under none: all that was idle looked as if
    it had ended, and admission kept no room for it."""
    trace = sessions()
    sim = config(trace)
    played = virtual.play(trace, virtual.VirtualConfig(sim, asynchronous=False, at_once=True), preset("likely"))
    assert steps_that_differ(trace, replace(sim, tool_names=False), played, "likely") == 0


@pytest.mark.parametrize("name", ["lru", "likely", "saga", "saga+"])
@pytest.mark.parametrize("workers", [1, 2])
def test_asynchronous_scheduling_is_simulated_to_the_last_step(name, workers):
    trace = sessions()
    sim = replace(config(trace, workers, population=4 + 2 * workers), tool_names=False, async_scheduling=True)
    played, again = (virtual.play(trace, virtual.VirtualConfig(sim), preset(name)) for _ in range(2))
    assert played.counts["evicted/idle"] > 0
    assert steps_that_differ(trace, sim, played, name) == 0
    assert played.done_s.tolist() == again.done_s.tolist()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_preemptions_with_a_token_under_way_are_simulated_to_the_last_step(asynchronous):
    trace = sessions()
    sim = replace(config(trace, contexts=1.05), tool_names=False, async_scheduling=asynchronous,
                  reserve_full_prompt=False)
    played = virtual.play(trace, virtual.VirtualConfig(sim, asynchronous, at_once=not asynchronous), preset("lru"))
    assert played.figures()["preemptions"] > 50
    assert steps_that_differ(trace, sim, played, "lru") == 0


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", ["likely", "saga+"])
def test_who_has_waited_for_too_long_goes_ahead_in_the_simulator_as_in_service(name, asynchronous):
    trace = sessions()
    sim = replace(config(trace, contexts=1.2, population=10), tool_names=False, async_scheduling=asynchronous,
                  starve_s=2.0)
    played = virtual.play(trace, virtual.VirtualConfig(sim, asynchronous, at_once=not asynchronous), preset(name))
    assert played.counts["let in starving"] > 0
    assert steps_that_differ(trace, sim, played, name) == 0
    assert steps_that_differ(trace, replace(sim, single_steps=True), played, name) == 0
    assert steps_that_differ(trace, replace(sim, starve_s=np.inf), played, name) > 0


@pytest.mark.parametrize("name", ["lru", "likely", "auto"])
@pytest.mark.parametrize(("pools", "within"), [(4.0, 0.01), (1.5, 0.08)])
def test_vllms_own_offloading_is_simulated(name, pools, within):
    """Everything that was ever a prompt fits into the first tier: what is found is the same, and times are close, but
    for waits for copies out of blocks that are taken again. In the second, who is evicted also depends on when vLLM
    hears that a copy is done, and two runs of vLLM differ."""
    trace = sessions()
    sim = replace(config(trace), tool_names=False, async_scheduling=True, offloading="vllm", pcie_tokens_per_s=1e6)
    with_tier = replace(sim, cpu_tokens=int(pools * sim.kv_tokens))
    played = virtual.play(trace, virtual.VirtualConfig(with_tier), preset(name)).figures()
    told = simulate(trace, with_tier, preset(name), slo=False).metrics
    found = told["hit_share"] + told["loaded_tokens"] / trace.steps.prompt_tokens.sum()
    assert told["loaded_tokens"] > 0
    assert found == pytest.approx(played["hit_share"], abs=within / 10 if pools == 4.0 else within)
    assert told["tct_mean_s"] == pytest.approx(played["tct_mean_s"], rel=within)
    assert told["tct_mean_s"] < simulate(trace, sim, preset(name), slo=False).metrics["tct_mean_s"]


def test_while_kv_comes_back_an_engine_is_not_idle_and_asks_whom_to_let_in(monkeypatch):
    """Only an idle engine lets anybody in. One whose requests all wait for their KV will be busy in a moment."""
    from vllm.v1.request import RequestStatus

    from saga_rl.runtime.engine.lifecycle import RequestLife

    admits, cases = RequestLife._admits, Counter()

    def watched(self, request, served, cached_blocks):
        before = self.metrics.counts["admission"]
        yes = admits(self, request, served, cached_blocks)
        if not self.running and any(r.status == RequestStatus.WAITING_FOR_REMOTE_KVS for r in self.requests.values()):
            cases["asked" if not yes or self.metrics.counts["admission"] > before else "let in unasked"] += 1
        return yes

    monkeypatch.setattr(RequestLife, "_admits", watched)
    trace = sessions()
    sim = replace(config(trace, population=10), tool_names=False, async_scheduling=True, offloading="vllm",
                  pcie_tokens_per_s=2e3)
    virtual.play(trace, virtual.VirtualConfig(replace(sim, cpu_tokens=4 * sim.kv_tokens)), preset("likely"))
    assert cases["asked"] > 0 and cases["let in unasked"] == 0, cases


def test_clients_say_what_the_replay_says():
    trace = sessions(n=3)
    run = virtual.cluster._Run(trace, virtual.VirtualConfig(config(trace), next_tool=True), preset("lru"),
                               lambda *_: None)
    run.begin_s[:] = 0.0
    drive = _Drive(trace, None, DriveOptions("m", ends=False), lambda event: None)  # type: ignore[arg-type]
    drive.t0, drive.now = 0.0, lambda: 0.0  # type: ignore[method-assign]
    drive.m.start_s[:] = 0.0
    for row in range(trace.n_steps):
        s = int(trace.steps.session[row])
        assert run._hints(s, row) == drive.hints(s, row, int(run.readers[row]))
