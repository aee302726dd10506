"""One battery that every registered policy passes."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policies_rows import ALL, COLUMNS, EVENTS, MEMORIES, events, rows, write_checkpoint

from saga_rl.errors import UserError
from saga_rl.policies import registry
from saga_rl.policies.base import DECISIONS, MEMORY, Policy
from saga_rl.policies.batch import score_rows
from saga_rl.policies.features import AD, EV, OD, PL, eviction_row, make_g
from saga_rl.policies.state.chains import make_chains
from saga_rl.policies.state.tables import make_tables

FUTURE = {"eviction": EV.oracle, "admission": AD.older_returns}
"""The column that shows the future, where there is one."""
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=ALL, ids=lambda p: f"{p[0]}-{p[1]}")
def policy(request, tmp_path_factory) -> Policy:
    decision, name = request.param
    if name == "learned":
        name = f"learned:{write_checkpoint(tmp_path_factory.mktemp('ckpt') / decision, decision)}"
    return registry.make(decision, name)


@pytest.fixture(params=[(decision, name) for decision, name in ALL if decision in EVENTS and name != "learned"
                        and registry.make(decision, name).memory], ids=lambda p: f"{p[0]}-{p[1]}")
def remembering(request) -> Policy:
    """Each policy with memory."""
    return registry.make(*request.param)


@pytest.fixture(params=[name for decision, name in ALL if decision == "placement" and name != "learned"])
def placing(request) -> Policy:
    return registry.make("placement", request.param)


def test_declares_itself(policy):
    assert policy.decision in DECISIONS
    assert policy.name in registry.names(policy.decision)
    assert policy.params.dtype == np.float64 and policy.params.flags.c_contiguous
    assert policy.scratch >= (MEMORY if policy.memory else 1)


def test_flags_belong_to_their_decision(policy):
    only = {"whole_chain": "eviction", "drop_expired": "eviction", "oldest_first": "eviction",
            "fresh": "ordering", "draws": "placement", "steals": "placement"}
    for flag, decision in only.items():
        assert not getattr(policy, flag) or policy.decision == decision, flag
    assert not policy.memory or policy.decision in EVENTS
    assert not policy.steady or policy.decision != "placement"


@quick
@given(data=st.data())
def test_same_row_same_score_whatever_scratch_holds(policy, data):
    x = data.draw(rows(policy.decision))
    a = policy.score(x, policy.params, np.zeros(policy.scratch))
    b = policy.score(x, policy.params, np.full(policy.scratch, np.nan))
    assert a == b


@quick
@given(data=st.data())
def test_score_is_a_number(policy, data):
    x = data.draw(rows(policy.decision))
    value = policy.score(x, policy.params, np.zeros(policy.scratch))
    if policy.oracle and policy.decision == "eviction" and np.isinf(x[EV.oracle]):
        assert value == np.inf or np.isfinite(value)
    else:
        assert np.isfinite(value)


def columns_left_out(policy) -> list[int]:
    """Places of the columns that a caller may leave out where a policy says that it does not read them."""
    if policy.decision == "admission":
        return [] if policy.informed else [*range(AD.new), AD.older_likely]
    if policy.decision == "ordering":
        return [] if policy.informed else [OD.service, OD.least_service]
    row = np.full(len(COLUMNS[policy.decision]), np.nan)
    g = make_g(1, 16, 100, policy)
    eviction_row(make_chains(1), make_tables(1, 1, 1), g, 0, 0, 5.0, 1.0, 3.0, 0.0, 0.0, row)
    return np.flatnonzero(np.isnan(row)).tolist()


@quick
@given(data=st.data())
def test_who_says_that_columns_are_not_read_does_not_read_them(policy, data):
    assert policy.informed or policy.decision != "placement"
    assert policy.scaled or policy.decision == "eviction"
    if policy.decision == "placement":
        return
    left_out = columns_left_out(policy)
    assert bool(left_out) == (not policy.informed or (policy.decision == "eviction" and not policy.scaled))
    x = data.draw(rows(policy.decision))
    y = x.copy()
    y[left_out] = np.nan
    a, b = (policy.score(r, policy.params, np.zeros(policy.scratch)) for r in (x, y))
    assert a == b


@quick
@given(data=st.data())
def test_writes_neither_row_nor_params(policy, data):
    x = data.draw(rows(policy.decision))
    before, params = x.copy(), policy.params.copy()
    policy.score(x, policy.params, np.zeros(policy.scratch))
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(policy.params, params)


@quick
@given(data=st.data(), future=st.floats(0, 1e9) | st.sampled_from([np.nan, np.inf]))
def test_only_an_oracle_sees_the_future(policy, data, future):
    if policy.decision not in FUTURE:
        assert not policy.oracle
        return
    column = FUTURE[policy.decision]
    x = data.draw(rows(policy.decision))
    y = x.copy()
    y[column] = future
    a, b = (policy.score(r, policy.params, np.zeros(policy.scratch)) for r in (x, y))
    if not policy.oracle:
        assert a == b
    elif policy.oracle_gaps and np.isinf([future, x[column]]).any():
        return  # told how long a tool takes and not who comes back: of one that never does it goes by the tables
    elif not np.isnan(future):  # who knows keeps no longer what comes back later, nor lets in where more returns
        later = (a <= b) if x[column] <= future else (a >= b)
        assert later if policy.decision == "eviction" else a == b or not later


@quick
@given(data=st.data())
def test_who_does_not_draw_reads_no_draw(placing, data):
    x = data.draw(rows("placement"))
    y = x.copy()
    y[PL.draw] = y[PL.ring] = 0.0
    a, b = (placing.score(r, placing.params, np.zeros(placing.scratch)) for r in (x, y))
    assert a == b or placing.draws


def _remembers(policy: Policy, x: np.ndarray, before: float) -> np.ndarray:
    """What a policy with memory leaves to be remembered after event `x`, with `before` all over its scratch."""
    scratch, shown, params = np.full(policy.scratch, before), x.copy(), policy.params.copy()
    policy.score(x, policy.params, scratch)
    np.testing.assert_array_equal(x, shown)
    np.testing.assert_array_equal(policy.params, params)
    return scratch[:MEMORIES[policy.decision][1]]


@quick
@given(data=st.data())
def test_what_it_remembers_comes_from_the_row_alone(remembering, data):
    x = data.draw(events(remembering.decision))
    left = _remembers(remembering, x, np.nan)
    assert np.isfinite(left).all()
    np.testing.assert_array_equal(left, _remembers(remembering, x, 0.0))
    np.testing.assert_array_equal(left, _remembers(remembering, x, -7.5))


@quick
@given(data=st.data())
def test_memory_stays_finite_from_event_to_event(remembering, data):
    policy = remembering
    first, n = MEMORIES[policy.decision]
    memory = np.zeros(n)
    for _ in range(data.draw(st.integers(1, 8))):
        memory = _remembers(policy, data.draw(events(policy.decision, memory)), np.nan)
        assert np.isfinite(memory).all()
        x = data.draw(rows(policy.decision))
        x[first:first + n] = memory
        assert np.isfinite(policy.score(x, policy.params, np.zeros(policy.scratch)))


@pytest.mark.parametrize("flag", ["steady", "drop_expired", "oldest_first"])
def test_memory_excludes_what_skips_scoring(flag):
    score = registry.make("eviction", "lru").score
    Policy("eviction", "mine", score, scratch=MEMORY, memory=True)
    with pytest.raises(ValueError, match="memory"):
        Policy("eviction", "mine", score, scratch=MEMORY, memory=True, **{flag: True})


def test_memory_needs_its_scratch():
    with pytest.raises(ValueError, match="scratch"):
        Policy("eviction", "mine", registry.make("eviction", "lru").score, scratch=MEMORY - 1, memory=True)


@quick
@given(data=st.data())
def test_batch_equals_single(policy, data):
    x = np.array(data.draw(st.lists(rows(policy.decision), min_size=1, max_size=5)))
    out = np.full(len(x), np.nan)
    scratch = np.zeros(policy.scratch)
    score_rows(policy.score, x, 0, len(x), policy.params, scratch, out)
    np.testing.assert_array_equal(out, [policy.score(r, policy.params, scratch) for r in x])
    assert len(score_rows.signatures) == 1


def test_bad_parameters(policy):
    if policy.name == "learned":
        with pytest.raises(UserError, match="names no checkpoint"):
            registry.make(policy.decision, "learned")
        with pytest.raises(UserError, match="no such checkpoint folder"):
            registry.make(policy.decision, "learned:nowhere")
        return
    with pytest.raises(UserError, match=r"no parameter|takes no parameters"):
        registry.make(policy.decision, f"{policy.name}:bogus=1")
    for key in inspect.signature(registry._FACTORIES[policy.decision][policy.name]).parameters:
        for value in ("nan", "inf", "-1", "1e300", "much", ""):
            with pytest.raises(UserError, match=key):
                registry.make(policy.decision, f"{policy.name}:{key}={value}")
        with pytest.raises(UserError, match="with '='"):
            registry.make(policy.decision, f"{policy.name}:{key}")
        with pytest.raises(UserError) as e:
            registry.make(policy.decision, f"{policy.name}:{key}x=1")
        assert e.value.mend.startswith(f"choose one of: {key}")


def test_misspelt_name_lists_the_nearest_first(policy):
    with pytest.raises(UserError) as e:
        registry.make(policy.decision, policy.name + "x")
    assert e.value.mend.startswith(f"choose one of: {policy.name}")
    assert all(name in e.value.mend for name in registry.names(policy.decision))


def test_expected_policies_are_there():
    have = {decision: set(registry.names(decision)) for decision in DECISIONS}
    assert have["eviction"] >= {
        "lru", "lru-protect", "s3-fifo", "arc", "lfu", "greedy-dual", "tail-lru", "kvflow", "continuum", "bayes-tables",
        "wa-lru", "wa-lru-literal", "youngest", "belady", "clairvoyant", "ends-known", "returns-known", "learned"}
    assert have["placement"] >= {"least-load", "least-sessions", "sticky", "saga", "learned"}
    assert have["ordering"] >= {"fcfs", "session-fcfs", "afs"}
    assert have["admission"] >= {"none", "grow", "reserve-older"}


def test_registering_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        registry.register("eviction", "lru")(lambda: None)


@pytest.mark.parametrize("decision", DECISIONS)
def test_column_names_are_unique(decision):
    assert len(set(COLUMNS[decision])) == len(COLUMNS[decision])
