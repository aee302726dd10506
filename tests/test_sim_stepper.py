"""The pausing replay: a policy's own choices give that policy's replay; labels stay out of the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_strings import random_reference, random_trace

from saga_rl.policies.features import EV, EVICTION
from saga_rl.policies.registry import make
from saga_rl.sim.openloop.replay import replay
from saga_rl.sim.stepping.replay_stepper import EvictionStepper

SEEDS = st.integers(0, 2**32)


def stepper_for(seed: int, max_rows: int = 64) -> EvictionStepper:
    trace = random_trace(seed, sessions=6, hashes=seed % 3 == 0)
    reference = random_reference(trace, seed, slack=0)
    return EvictionStepper(reference, reference.kv_tokens, max_rows)


def busy_seed() -> int:
    return next(s for s in range(1000) if stepper_for(s).n_rows > 2)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from(["lru", "lru-protect", "wa-lru", "youngest", "belady"]))
def test_a_policys_own_choices_are_its_replay(seed, name):
    trace = random_trace(seed, sessions=6, hashes=seed % 3 == 0)
    reference = random_reference(trace, seed, slack=0)
    policy = make("eviction", name)
    stepper = EvictionStepper(reference, reference.kv_tokens, 64)
    pending = stepper.n_rows > 0
    while pending:
        assert 2 <= stepper.n_rows == stepper.candidates
        pending = stepper.advance(stepper.policy_action(policy))
    assert stepper.n_rows == 0
    alone = replay(reference, policy, reference.kv_tokens)
    if name == "belady":  # the stepper takes what one release freed as one, as vLLM does; who knows the future need not
        assert stepper.result().recomputed_tokens >= alone.recomputed_tokens
    else:
        assert stepper.result() == alone


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.randoms(use_true_random=False))
def test_what_a_decision_shows(seed, rng):
    stepper = stepper_for(seed)
    pending = stepper.n_rows > 0
    before = 0
    while pending:
        n = stepper.n_rows
        assert np.isnan(stepper.rows[:n, EV.oracle]).all() and not stepper.rows[n:].any()
        assert np.isfinite(np.delete(stepper.rows[:n], [EV.oracle, EV.useful], axis=1)).all()
        assert (stepper.rows[:n, EV.useful] >= 0).all(), "infinite where a request was preempted"
        assert (np.diff(stepper.rows[:n, EV.idle_s]) <= 0).all(), "in the order in which LRU takes them"
        assert (stepper.next_use[:n] > stepper.event).all() and np.isnan(stepper.next_use[n:]).all()
        assert stepper.next_use[stepper.belady_action()] == stepper.next_use[:n].max()
        pending = stepper.advance(rng.randrange(n))
        assert stepper.recomputed_tokens >= before
        before = stepper.recomputed_tokens


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.randoms(use_true_random=False))
def test_no_choices_beat_belady(seed, rng):
    trace = random_trace(seed, sessions=6)
    reference = random_reference(trace, seed, slack=0)
    stepper = EvictionStepper(reference, reference.kv_tokens)
    pending = stepper.n_rows > 0
    while pending:
        pending = stepper.advance(rng.randrange(stepper.n_rows))
    best = replay(reference, make("eviction", "belady"), reference.kv_tokens)
    assert stepper.recomputed_tokens >= best.recomputed_tokens


def test_few_rows_offer_what_lru_takes_first():
    seed = busy_seed()
    wide, narrow = stepper_for(seed), stepper_for(seed, 2)
    assert narrow.n_rows == 2 < wide.n_rows == narrow.candidates
    np.testing.assert_array_equal(narrow.rows, wide.rows[:2])
    lru = make("eviction", "lru")
    for stepper in (wide, narrow):
        pending = True
        while pending:
            pending = stepper.advance(stepper.policy_action(lru))
    assert wide.result() == narrow.result()


def test_reset_starts_over():
    stepper = stepper_for(busy_seed())
    rows, totals = stepper.rows.copy(), []
    for _ in range(2):
        assert stepper.reset()
        np.testing.assert_array_equal(stepper.rows, rows)
        while stepper.advance(0):
            pass
        totals.append(stepper.result())
    assert totals[0] == totals[1]


def test_an_action_outside_the_offer_is_refused():
    stepper = stepper_for(busy_seed())
    for action in (-1, stepper.n_rows):
        with pytest.raises(ValueError, match="names none"):
            stepper.advance(action)
    assert stepper.rows.shape == (64, len(EVICTION))
