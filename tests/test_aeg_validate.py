"""Each rule of a valid trace, broken once: the message names session, step, field, value and mend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check, check_fits
from saga_rl.errors import UserError


def small() -> Trace:
    """Two sessions; the second has a sub-agent (agent 1) that step 2 waits for."""
    chain = [StepSpec(100, 10, tool="Bash", tool_s=1.0), StepSpec(150, 10, (0,), prefix_step=0, prefix_tokens=110)]
    tree = [StepSpec(100, 10, tool="Agent", shared_prefix="sys", prefix_tokens=50),
            StepSpec(60, 5, (0,), agent=1, shared_prefix="sys", prefix_tokens=50),
            StepSpec(200, 10, (0, 1), prefix_step=0, prefix_tokens=110)]
    sessions = [SessionSpec("one", 1.0, chain), SessionSpec("two", 2.0, tree)]
    return build_trace(TraceMeta("t", "generated:test"), sessions)


def test_a_valid_trace_passes() -> None:
    check(small())


def put(column: str, row: int, value: object) -> Callable[[Trace], None]:
    def change(t: Trace) -> None:
        table = t.steps if hasattr(t.steps, column) else t.sessions
        getattr(table, column)[row] = value

    return change


@pytest.mark.parametrize(("change", "words"), [
    (put("tool_s", 1, -0.5), ("'one'", "step 1", "tool_s", "-0.5")),
    (put("tool_s", 3, np.nan), ("'two'", "step 1", "tool_s", "nan")),
    (put("think_s", 2, np.inf), ("'two'", "step 0", "think_s", "inf")),
    (put("start_s", 2, -3.0), ("'two'", "step 0", "start_s", "-3.0")),
    (put("prompt_tokens", 0, -5), ("'one'", "step 0", "prompt_tokens", "-5")),
    (put("output_tokens", 4, 0), ("'two'", "step 2", "output_tokens", "0")),
    (put("cached_tokens", 0, 101), ("'one'", "step 0", "cached_tokens", "101")),
    (put("parents", 0, 7), ("'one'", "step 1", "parents", "7", "missing")),
    (put("parents", 0, -1), ("'one'", "step 1", "parents", "-1", "missing")),
    (put("parents", 0, 1), ("'one'", "step 1", "parents", "not before")),
    (put("parents", 3, 0), ("'two'", "step 2", "parents", "twice")),
    (put("parents", 2, 1), ("'two'", "step 2", "parents", "twice")),
    (put("agent", 3, -1), ("'two'", "step 1", "agent", "-1")),
    (put("agent", 2, 1), ("'two'", "step 0", "agent", "main")),
    (put("prefix_step", 1, 1), ("'one'", "step 1", "prefix_step", "1", "earlier")),
    (put("prefix_step", 1, 5), ("'one'", "step 1", "prefix_step", "5", "missing")),
    (put("prefix_tokens", 1, 111), ("'one'", "step 1", "prefix_tokens", "111", "context")),
    (put("prefix_tokens", 3, 61), ("'two'", "step 1", "prefix_tokens", "61", "prompt")),
    (put("prefix_tokens", 3, -1), ("'two'", "step 1", "prefix_tokens", "-1")),
    (put("shared_prefix", 2, -1), ("'two'", "step 0", "prefix_tokens", "50")),
    (put("shared_prefix", 2, 4), ("'two'", "step 0", "shared_prefix", "4")),
    (put("tool", 0, 9), ("'one'", "step 0", "tool", "9")),
    (put("session", 1, 1), ("'one'", "step 1", "session", "1")),
    (put("arrival_s", 1, 0.5), ("'two'", "arrival_s", "0.5", "sort")),
    (put("arrival_s", 0, np.nan), ("'one'", "arrival_s", "nan")),
    (put("deadline_s", 1, 1.5), ("'two'", "deadline_s", "1.5", "arrival")),
    (put("session_id", 1, "one"), ("'one'", "session_id", "two sessions")),
    (put("tenant", 1, 3), ("'two'", "tenant", "3")),
])
def test_each_rule(change: Callable[[Trace], None], words: tuple[str, ...]) -> None:
    trace = small()
    change(trace)
    with pytest.raises(UserError) as e:
        check(trace)
    for word in words:
        assert word in str(e.value), f"{word!r} is not in: {e.value}"
    assert e.value.mend


def test_one_request_in_flight_an_agent() -> None:
    steps = [StepSpec(10, 1), StepSpec(10, 1, (0,)), StepSpec(10, 1, (0,))]
    with pytest.raises(UserError, match=r"step 2, parents: leave out step 1"):
        check(build_trace(TraceMeta("t", "s"), [SessionSpec("a", 0.0, steps)]))


def test_a_session_has_a_step() -> None:
    with pytest.raises(UserError, match=r"session 'a', steps"):
        check(build_trace(TraceMeta("t", "s"), [SessionSpec("a", 0.0, [])]))


def test_block_ids_need_a_block_size_and_fit_the_prompt() -> None:
    def trace(ids: int, block: int) -> Trace:
        return build_trace(TraceMeta("t", "s", hash_block_tokens=block),
                           [SessionSpec("a", 0.0, [StepSpec(100, 1, hashes=range(ids))])])

    check(trace(7, 16))  # six whole blocks and the partial one
    for ids, block in ((8, 16), (1, 0)):
        with pytest.raises(UserError, match=r"session 'a', step 0, hashes"):
            check(trace(ids, block))


def test_fits() -> None:
    trace = small()
    check_fits(trace, 210, 210)
    with pytest.raises(UserError, match=r"session 'two', step 2.*210 tokens.*model's length of 209"):
        check_fits(trace, model_len=209)
    with pytest.raises(UserError, match=r"session 'one', step 1.*160 tokens.*KV pool of 159"):
        check_fits(trace, kv_tokens=159)
