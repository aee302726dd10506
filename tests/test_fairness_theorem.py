"""SAGA's fairness theorem at its boundary (docs/explanation/paper.md says what is claimed and why in this form).

Sessions that are there at once, W seconds of the engine each when alone with everything cached, G seconds of tools,
S = deadline - G of slack; demand D = sum of W / S, heterogeneity rho = largest S / least S. While a session is not
done, an engine that never idles while somebody waits is idle only during that session's own tools, so the session is
done within G + sum of W <= G + D x rho x S. No order of requests is needed for that, and none can do without rho.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hst

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.policies.presets import preset
from saga_rl.policies.registry import make
from saga_rl.sim.cluster import alone_tct, simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import CostProfile

PROFILE = CostProfile("linear", base_s=0.5, per_prefill_token_s=0.01, per_kv_token_s=0.001, per_seq_s=0.05,
                      per_attn_s=0.0001, per_context_s=0.0, max_batched_tokens=64)
"""An iteration costs no more than its parts would one by one."""
ORDERS = ("afs", "fcfs", "session-fcfs")


@hst.composite
def _sessions(draw: hst.DrawFn) -> Trace:
    """Chains of up to four tenants, all there at 0, with tools of up to 20 s."""
    out = []
    for s in range(draw(hst.integers(2, 8))):
        steps: list[StepSpec] = []
        context = 0
        for k in range(draw(hst.integers(1, 5))):
            new, output = draw(hst.integers(1, 120)), draw(hst.integers(1, 12))
            steps.append(StepSpec(context + new, output, (k - 1,) if k else (), tool="t",
                                  tool_s=draw(hst.integers(0, 20)) / 1.0, prefix_step=k - 1, prefix_tokens=context))
            context += new + output
        out.append(SessionSpec(f"s{s}", 0.0, steps, tenant=draw(hst.sampled_from("abcd")),
                               deadline_s=draw(hst.floats(1.0, 3.0))))
    return build_trace(TraceMeta("theorem", "generated:test"), out)


def tools_s(trace: Trace) -> np.ndarray:
    """(sessions,) seconds of tools whose answer is sent back."""
    gaps = (trace.steps.tool_s + trace.steps.think_s).copy()
    gaps[trace.session_offsets[1:] - 1] = 0.0
    return np.add.reduceat(gaps, trace.session_offsets[:-1])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trace=_sessions(), seqs=hst.integers(1, 4), order=hst.sampled_from(ORDERS), load=hst.floats(0.2, 2.0))
def test_nobody_is_done_later_than_demand_times_heterogeneity(trace: Trace, seqs: int, order: str, load: float) -> None:
    """Slacks are the drawn ones, of heterogeneity up to 3, scaled so that demand is `load`; below 1 / rho of it nobody
    is late."""
    config = SimConfig(kv_tokens=200_000, profile=PROFILE, max_num_seqs=seqs)
    tools = tools_s(trace)
    work = alone_tct(trace, config) - tools
    shape = trace.sessions.deadline_s
    slack = shape * float((work / shape).sum()) / load
    demand, rho = float((work / slack).sum()), float(slack.max() / slack.min())
    assert demand == pytest.approx(load)
    due = replace(trace, sessions=replace(trace.sessions, deadline_s=tools + slack))
    done = simulate(due, config, replace(preset("lru"), ordering=make("ordering", order)), slo=False).tct_s
    assert (done - tools <= work.sum() + 1e-6).all() and work.sum() <= demand * rho * slack.min() + 1e-6
    assert (done - tools <= demand * rho * slack + 1e-6).all()
    if demand * rho <= 1.0:
        assert (done <= due.sessions.deadline_s + 1e-6).all()


STEP_S, STEPS = 5.0, 20
"""What a request takes in the scene, and how many a session has: what the tables expect before they have seen any, so
that AFS divides the true work that remains by the true slack."""
APART_S = 1e-3
"""Between two sessions of the scene, so that it is defined who came first."""
SCENE = CostProfile("scene", base_s=STEP_S / 2, per_prefill_token_s=1e-9, per_kv_token_s=0.0, per_seq_s=0.0,
                    per_attn_s=0.0, per_context_s=0.0, max_batched_tokens=64)


def scene(urgent: int, urgent_s: float, patient: int, patient_s: float) -> Trace:
    """`urgent` tenants with one session each, due in `urgent_s`, and one tenant with `patient` sessions due in
    `patient_s`; every session is 20 requests of 5 s, one after the other, without tools."""
    def session(k: int, tenant: str, due: float) -> SessionSpec:
        steps = [StepSpec(16 + 18 * i, 2, (i - 1,) if i else (), prefix_step=i - 1, prefix_tokens=18 * i)
                 for i in range(STEPS)]
        return SessionSpec(f"s{k:02d}", k * APART_S, steps, tenant=tenant, deadline_s=k * APART_S + due)

    return build_trace(TraceMeta("scene", "generated:test"), [
        *(session(k, f"urgent-{k}", urgent_s) for k in range(urgent)),
        *(session(urgent + k, "patient", patient_s) for k in range(patient))])


def lateness(trace: Trace, order: str) -> tuple[float, float]:
    """(demand, the latest session's seconds over its deadline; negative = all in time) on an engine that serves one
    request at a time."""
    config = SimConfig(kv_tokens=200_000, profile=SCENE, max_num_seqs=1, end_hint=True)
    assert alone_tct(trace, config) == pytest.approx(STEP_S * STEPS, rel=1e-6)
    done = simulate(trace, config, replace(preset("lru"), ordering=make("ordering", order)), slo=False).tct_s
    assert done.max() == pytest.approx(STEP_S * STEPS * trace.n_sessions, abs=0.1), "never idle"
    allowed = trace.sessions.deadline_s - trace.sessions.arrival_s
    return float((STEP_S * STEPS / allowed).sum()), float((done - allowed).max())


def test_with_equal_slack_a_demand_of_one_is_the_boundary() -> None:
    """Nine and ten sessions of 100 s in 1,000 s; an eleventh cannot be in time under any order."""
    for patient, demand in ((5, 0.9), (6, 1.0)):
        found, late = lateness(scene(4, 1000.0, patient, 1000.0), "afs")
        assert found == pytest.approx(demand) and late <= 0.1
    assert lateness(scene(4, 1000.0, 7, 1000.0), "afs")[1] == pytest.approx(100.0, abs=0.1)


def test_outside_of_bounded_heterogeneity_the_highest_share_first_is_late() -> None:
    """Four tenants with 100 s of work due in 1,000 s (.1 each), one with 1,000 s due in 2,000 s (.5): demand .9,
    heterogeneity 2. Serving the highest share first works on the patient tenant until 630 s; then the shares are equal
    and rise together, since all together they ask for more than there is. Served one after another, the urgent ones
    first, all are in time by 600 s."""
    urgent_first = scene(4, 1000.0, 10, 2000.0)
    demand, late = lateness(urgent_first, "afs")
    assert demand == pytest.approx(0.9) and late > STEP_S
    assert lateness(urgent_first, "session-fcfs")[1] == pytest.approx(-600.0, abs=0.1)
