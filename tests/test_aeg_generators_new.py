"""Agents that end in different ways, mixes that change, and older workloads that stay what they were."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.aeg.generators.shift import LEVELS, MIXES, arrivals, sources, work
from saga_rl.aeg.io import equal
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError

SAME = {"swe-bench": "82d856e236c4c8c1", "webarena": "4282c98569af6f40", "burstgpt": "7d6a04d4af026d49"}
"""Digests of traces as they were before agents could end otherwise than with an answer."""


def digest(trace: Trace) -> str:
    h = hashlib.sha256()
    for part in (trace.sessions, trace.steps):
        for key, value in vars(part).items():
            h.update(key.encode())
            h.update(repr(value).encode() if isinstance(value, list) else value.tobytes())
    h.update(repr((trace.tenants, trace.agent_types, trace.tools, trace.shared_prefixes)).encode())
    return h.hexdigest()[:16]


@pytest.mark.parametrize("name", list(SAME))
def test_older_workloads_stay_what_they_were(name: str) -> None:
    assert digest(generate(name, 7, sessions=12, hitl_share=0.2, deadline_per_step_s=3.0)) == SAME[name]


@pytest.fixture(scope="module")
def hetero() -> Trace:
    return generate("hetero", 3, sessions=1500, hitl_share=0.1)


def test_every_kind_ends_in_its_own_way(hetero: Trace) -> None:
    last = hetero.session_offsets[1:] - 1
    tool = np.array([*hetero.tools, ""])[hetero.steps.tool]
    for kind, ends in (("coder", {"submit"}), ("browser", {""}), ("helper", {""}),
                       ("analyst", {"database", "code", "web"})):
        mine = hetero.sessions.agent_type == hetero.agent_types.index(kind)
        assert set(tool[last[mine]]) == ends
        every = np.isin(hetero.steps.session, np.flatnonzero(mine))
        before = every & ~np.isin(np.arange(hetero.n_steps), last)
        assert "submit" not in tool[before] and "" not in tool[before], "only a last step ends the session"
    assert (hetero.steps.think_s[last] == 0).all(), "nobody waits for a human after the end"
    assert (hetero.steps.think_s[hetero.steps.think_s > 0] >= 30).all()


def test_an_analysts_last_call_looks_like_the_others(hetero: Trace) -> None:
    mine = np.flatnonzero(hetero.sessions.agent_type == hetero.agent_types.index("analyst"))
    last = hetero.session_offsets[1:][mine] - 1
    steps = np.flatnonzero(np.isin(hetero.steps.session, mine))
    database = hetero.tools.index("database")
    before = np.setdiff1d(steps, last)
    assert (hetero.steps.tool[last] == database).mean() == pytest.approx((hetero.steps.tool[before] == database).mean(),
                                                                         abs=0.06)


@pytest.mark.parametrize("name", ["hetero", "shift"])
def test_a_seed_gives_one_trace(name: str) -> None:
    assert equal(generate(name, 4, sessions=20), generate(name, 4, sessions=20))
    assert not equal(generate(name, 4, sessions=20), generate(name, 5, sessions=20))


def test_deadlines_do_not_wait_for_a_call_that_nobody_answers() -> None:
    trace = generate("hetero", 2, sessions=60, deadline_per_step_s=3.0)
    gaps = (trace.steps.tool_s + trace.steps.think_s).copy()
    gaps[trace.session_offsets[1:] - 1] = 0
    spent = np.add.reduceat(gaps, trace.session_offsets[:-1])
    wanted = trace.sessions.arrival_s + spent + 3.0 * np.diff(trace.session_offsets)
    assert trace.sessions.deadline_s == pytest.approx(wanted)


def test_phases_have_their_shares_of_work_and_their_levels() -> None:
    period, phases, peak = 1800.0, 4, 2.0
    at, what = arrivals(np.random.default_rng(1), 40_000, peak, period, phases)
    made = sources()
    assert (np.diff(at) >= 0).all()
    weight = np.array([work(s.agent) for s in made])
    mean_work = 1 / sum(s.share / w for s, w in zip(made, weight, strict=True))
    whole = int(at[-1] // period) // phases * phases
    assert whole >= phases
    assert (at < whole * period).sum() / (whole * period) == pytest.approx(0.85 * peak, rel=0.05)
    for k in range(whole):
        here = what[(at >= k * period) & (at < (k + 1) * period)]
        done = weight[here].sum() / (peak * period * mean_work)
        assert done == pytest.approx(LEVELS[k % phases % 2], rel=0.06), "work at a level of the peak"
        for kind, share in MIXES[k % phases].items():
            mine = sum(weight[here[np.isin(here, [i for i, s in enumerate(made) if s.tenant == kind])]])
            assert mine / weight[here].sum() == pytest.approx(share, rel=0.1)
        absent = {s.tenant for s in made} - set(MIXES[k % phases])
        assert not {made[i].tenant for i in here} & absent


def test_a_trace_of_one_phase_holds_only_its_kinds() -> None:
    trace = generate("shift", 1, sessions=80, phases=1)
    assert {trace.tenants[i] for i in trace.sessions.tenant} == set(MIXES[0])
    assert trace.meta.notes["period_s"] == 1800.0


@pytest.mark.parametrize(("name", "params", "word"), [
    ("shift", {"period_s": 0.0}, "period_s"), ("shift", {"phases": 9}, "phases"), ("hetero", {"phases": 2}, "phases")])
def test_bad_parameters(name: str, params: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        generate(name, 0, sessions=4, **params)
