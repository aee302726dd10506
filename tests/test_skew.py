"""No skew between training and serving: what the simulator lived through, told to the vLLM adapter's tracker, gives
the same feature rows to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from saga_rl.aeg.generators import generate
from saga_rl.policies.features import EV, EVICTION, G_INFORMED, ORDERING, eviction_row, ordering_row
from saga_rl.policies.presets import preset
from saga_rl.policies.state import chains as ch
from saga_rl.runtime.sessions.hints import Hints
from saga_rl.runtime.sessions.tracker import Served, Tracker
from saga_rl.sim.cache import evict as ev
from saga_rl.sim.cache import pool as kv
from saga_rl.sim.cluster import Cluster
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile
from saga_rl.sim.engine import state as st
from saga_rl.sim.reference import END, READY, START


def _play(cluster: Cluster, tracker: Tracker) -> None:
    """Tell the simulator's event log to the tracker, as a client with hints and an engine would."""
    trace, run, plan = cluster.trace, cluster.world.run, cluster.world.plan
    served: dict[int, Served] = {}
    for k in range(int(run.count[st.LOGGED])):
        kind, step, tokens, final = (int(x) for x in run.log_i[k])
        now, s, t = float(run.log_t[k]), int(plan.session[step]), trace.steps
        if kind == READY:
            tool = int(t.tool[step])
            served[step] = tracker.arrive(
                Hints(session=trace.sessions.session_id[s], agent=int(t.agent[step]),
                      next_tool=trace.tools[tool] if tool >= 0 else None, final=bool(plan.final[step]),
                      agent_type=trace.agent_types[int(plan.agent_type[s])],
                      tenant=trace.tenants[int(plan.tenant[s])]), now, tokens)
        elif kind == START:
            tracker.schedule(served[step], now)
        elif final:
            tracker.finish(served[step], now, int(plan.output[step]))
        else:
            assert kind == END
            tracker.preempt(served[step], now)


TRACES: dict[str, dict] = {
    "webarena": {"seed": 11, "sessions": 14, "max_context": 30_000, "rate_per_min": 20},
    "coding": {"seed": 5, "sessions": 12, "max_context": 56_000, "rate_per_min": 12, "unattended_share": 1.0}}
"""The second: agents that start others."""


@pytest.mark.parametrize("horizon", [40.0, 150.0, 400.0, 2000.0])
@pytest.mark.parametrize(("name", "generator"), [("lru", "webarena"), ("saga+", "webarena"), ("saga+", "coding")])
def test_simulator_and_runtime_make_equal_rows(name, generator, horizon):
    trace = generate(generator, **TRACES[generator])
    config = SimConfig(kv_tokens=60_000 if generator == "webarena" else 200_000, horizon_s=horizon,
                       end_hint=True, profile=load_profile("a100-llama3-70b-tp4"))  # slow enough for agents to wait
    cluster = Cluster(trace, config, preset(name), log=8 * trace.n_steps)
    cluster.advance()
    world = cluster.world
    assert not world.run.count[st.OVERFLOW]
    now = float(world.run.total[st.NOW])
    tracker = Tracker(expiry_s=config.expiry_s)
    _play(cluster, tracker)
    a, b = np.zeros(len(EVICTION)), np.zeros(len(EVICTION))
    o, p = np.zeros(len(ORDERING)), np.zeros(len(ORDERING))
    agent = np.zeros(len(world.chains), np.int64)
    agent[world.tree.chain] = trace.steps.agent
    g = world.g.copy()
    g[:, G_INFORMED] = 2.0  # whole rows, whatever this policy reads of them
    compared, waits_for = 0, 0
    for c in range(len(world.chains)):
        if np.isnan(world.chains[c, ch.QUEUED]):
            continue  # not begun yet
        row = tracker.chain_of(trace.sessions.session_id[int(world.chains[c, ch.SESSION])], int(agent[c]))
        mine = world.chains[c]
        for blocks, last in ((3.0, mine[ch.LAST]), (700.0, now - 1.0)):
            eviction_row(world.chains, world.tables, g.copy(), 0, c, now, last, blocks, 0.0, np.nan, a)
            tracker.chains[row, ch.QPOS] = mine[ch.QPOS]  # the queue's order belongs to the worker, not the tracker
            eviction_row(tracker.chains, tracker.tables, g.copy(), 0, row, now, last, blocks, 0.0, np.nan, b)
            np.testing.assert_array_equal(a, b)
        waits_for += a[EV.young_log] > 0
        for chains, tables, i, out in ((world.chains, world.tables, c, o), (tracker.chains, tracker.tables, row, p)):
            ordering_row(chains, tables, 0, i, now, chains[i, ch.QUEUED], 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, out)
        np.testing.assert_array_equal(o, p)
        compared += 1
    assert compared >= 5
    assert waits_for > 0 or generator == "webarena" or horizon < 100


def test_the_simulators_own_rows_are_those_of_the_feature_module():
    trace = generate("webarena", seed=12, sessions=14, max_context=30_000, rate_per_min=20)
    cluster = Cluster(trace, SimConfig(kv_tokens=60_000, horizon_s=300.0), preset("saga"))
    cluster.advance()
    world, now = cluster.world, float(cluster.world.run.total[st.NOW])
    idle = world.pool.idle[0, : world.pool.n[0, kv.IDLE]]
    assert len(idle) > 0
    a, b = np.zeros(len(EVICTION)), np.zeros(len(EVICTION))
    for seg in idle:
        c = world.pool.owner[seg]
        ev.row_of(world.pool, world.chains, world.tables, world.g, 0, seg, now, world.work.next_use, a)
        eviction_row(world.chains, world.tables, world.g, 0, c, now, world.pool.last[seg],
                     world.pool.owned[kv.owned_row(world.pool, 0, c)],
                     1.0 if world.pool.user[seg] == -2 else 0.0, np.nan, b)
        np.testing.assert_array_equal(a, b)
