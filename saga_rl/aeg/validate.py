"""What makes a trace valid: every room downstream may rely on what `check` asserts.

Nothing here repairs a trace. The first violation is raised as a `UserError` that names session, step, field, value and
mend; steps are numbered within their session from 0, as `parents` numbers them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError

_PER_STEP = ("session", "agent", "tool", "tool_s", "think_s", "prompt_tokens", "output_tokens", "prefix_step",
             "prefix_tokens", "shared_prefix", "start_s", "first_token_s", "end_s", "cached_tokens")


def check(trace: Trace) -> None:
    """Raise `UserError` unless the trace is valid. Costs one vectorised pass, no loop over steps.

    Guaranteed afterwards: columns agree in length and codes name vocabulary entries; session ids are unique, arrivals
    finite, not negative and in order, deadlines not before arrival; every session has a step and its first step belongs
    to the main agent; parents precede their children (so the graph has no cycle); a step that is not its agent's first
    waits for that agent's previous step, so no agent has two requests in flight; times are finite and not negative;
    prompt and output hold at least one token; a prefix is no longer than the context it names, nor than the prompt.
    """
    _check_shape(trace)
    _check_sessions(trace)
    _check_steps(trace)
    _check_parents(trace)
    _check_prefixes(trace)


def check_fits(trace: Trace, model_len: int | None = None, kv_tokens: int | None = None) -> None:
    """Raise `UserError` if a step's context (prompt + output) exceeds the model's length or the KV pool, in tokens."""
    context = trace.steps.prompt_tokens + trace.steps.output_tokens
    for limit, what in ((model_len, "the model's length"), (kv_tokens, "the KV pool")):
        if limit is None:
            continue
        i = _first(context > limit)
        if i is not None:
            raise _step_error(trace, i, "prompt_tokens + output_tokens",
                              f"is {context[i]} tokens, more than {what} of {limit}",
                              f"scale lengths by {limit / context.max():.3g} or less (saga-rl trace scale), "
                              "or take a larger one")


def _check_shape(trace: Trace) -> None:
    s, t, off = trace.sessions, trace.steps, trace.session_offsets
    n, m = trace.n_sessions, trace.n_steps
    for name in _PER_STEP:
        if getattr(t, name).shape != (m,):
            raise UserError(f"column {name}", f"has shape {getattr(t, name).shape}, not ({m},)",
                            "give every step a value")
    for name in ("group", "tenant", "agent_type", "arrival_s", "deadline_s"):
        if len(getattr(s, name)) != n:
            raise UserError(f"column {name}", f"has {len(getattr(s, name))} values for {n} sessions",
                            "give every session a value")
    for name, values, rows, end in (("session_offsets", off, n, m),
                                    ("parent_offsets", t.parent_offsets, m, len(t.parents)),
                                    ("hash_offsets", t.hash_offsets, m, len(t.hashes))):
        if len(values) != rows + 1 or values[0] != 0 or values[-1] != end or (np.diff(values) < 0).any():
            raise UserError(f"column {name}", f"does not run from 0 to {end} in {rows} steps",
                            "build the trace with saga_rl.aeg.build.build_trace")
    for name in ("tenants", "agent_types", "tools", "shared_prefixes"):
        words = getattr(trace, name)
        if len(set(words)) != len(words):
            twice = next(w for w in words if words.count(w) > 1)
            raise UserError(f"vocabulary {name}", f"holds {twice!r} twice", "name each entry once")


def _check_sessions(trace: Trace) -> None:
    s = trace.sessions
    i = _first(np.diff(trace.session_offsets) == 0)
    if i is not None:
        raise _session_error(trace, i, "steps", "has none", "drop the session or give it a step")
    if len(set(s.session_id)) != trace.n_sessions:
        seen: set[str] = set()
        twice = next(x for x in s.session_id if x in seen or seen.add(x))  # type: ignore[func-returns-value]
        raise UserError(f"session {twice!r}, session_id", "is used by two sessions", "give each session its own id")
    i = _first(~(np.isfinite(s.arrival_s) & (s.arrival_s >= 0)))
    if i is not None:
        raise _session_error(trace, i, "arrival_s", f"is {s.arrival_s[i]}", "give finite seconds, 0 or more")
    i = _first(np.diff(s.arrival_s) < 0)
    if i is not None:
        raise _session_error(trace, i + 1, "arrival_s", f"is {s.arrival_s[i + 1]}, before the previous session's "
                             f"{s.arrival_s[i]}", "sort the sessions by arrival")
    i = _first(s.deadline_s < s.arrival_s)
    if i is not None:
        raise _session_error(trace, i, "deadline_s", f"is {s.deadline_s[i]}, before its arrival at {s.arrival_s[i]}",
                             "give seconds on the trace's clock, or NaN for none")
    for name, words in (("tenant", trace.tenants), ("agent_type", trace.agent_types)):
        codes = getattr(s, name)
        i = _first((codes < 0) | (codes >= len(words)))
        if i is not None:
            raise _session_error(trace, i, name, f"has code {codes[i]} of {len(words)} names", "use a code that exists")


def _check_steps(trace: Trace) -> None:
    t, off = trace.steps, trace.session_offsets
    owner = np.repeat(np.arange(trace.n_sessions), np.diff(off))
    _require(trace, t.session == owner, "session", t.session, "number sessions in order from 0")
    _require(trace, t.agent >= 0, "agent", t.agent, "use 0 for the main agent, 1.. for sub-agents")
    first = np.zeros(trace.n_steps, bool)
    first[off[:-1]] = True
    _require(trace, ~first | (t.agent == 0), "agent", t.agent, "begin the session with its main agent, number 0")
    for name in ("tool_s", "think_s"):
        values = getattr(t, name)
        _require(trace, np.isfinite(values) & (values >= 0), name, values, "give finite seconds, 0 or more")
    for name in ("start_s", "first_token_s", "end_s"):
        values = getattr(t, name)
        _require(trace, np.isnan(values) | (np.isfinite(values) & (values >= 0)), name, values,
                 "give seconds, 0 or more, or NaN where unknown")
    for early, late in (("start_s", "first_token_s"), ("first_token_s", "end_s"), ("start_s", "end_s")):
        _require(trace, ~(getattr(t, late) < getattr(t, early)), late, getattr(t, late), f"let it not precede {early}")
    for name in ("prompt_tokens", "output_tokens"):
        values = getattr(t, name)
        _require(trace, values >= 1, name, values, "give 1 token or more (an engine never returns none)")
    _require(trace, (t.cached_tokens >= -1) & (t.cached_tokens <= t.prompt_tokens), "cached_tokens", t.cached_tokens,
             "give 0 up to the prompt's tokens, or -1 where unknown")
    _require(trace, (t.tool >= -1) & (t.tool < len(trace.tools)), "tool", t.tool,
             f"use a code below {len(trace.tools)}, or -1 for none")


def _check_parents(trace: Trace) -> None:
    t, off = trace.steps, trace.session_offsets
    child = np.repeat(np.arange(trace.n_steps), np.diff(t.parent_offsets))
    base = off[t.session[child]]
    own = child - base
    size = off[t.session[child] + 1] - base
    bad = _first((t.parents < 0) | (t.parents >= size))
    if bad is not None:
        raise _step_error(trace, int(child[bad]), "parents", f"names step {t.parents[bad]}, which is missing "
                          f"(the session has {size[bad]} steps)", "name an earlier step of the same session")
    bad = _first(t.parents >= own)
    if bad is not None:
        raise _step_error(trace, int(child[bad]), "parents", f"names step {t.parents[bad]}, which is not before it",
                          "order steps so that parents come first")
    parent = base + t.parents
    pairs = child * np.int64(max(trace.n_steps, 1)) + parent
    unique, counts = np.unique(pairs, return_counts=True)
    if len(unique) != len(pairs):
        i = int(unique[np.argmax(counts > 1)] // max(trace.n_steps, 1))
        raise _step_error(trace, i, "parents", "names the same step twice", "name each parent once")
    previous = previous_of_agent(trace)
    has = np.zeros(trace.n_steps, bool)
    has[child[parent == previous[child]]] = True
    lone = _first((previous >= 0) & ~has)
    if lone is not None:
        raise _step_error(trace, lone, "parents", f"leave out step {previous[lone] - off[t.session[lone]]}, the "
                          f"previous step of agent {t.agent[lone]}",
                          "add it, or give a concurrent request an agent number of its own")


def _check_prefixes(trace: Trace) -> None:
    t, off = trace.steps, trace.session_offsets
    base = off[t.session]
    own = np.arange(trace.n_steps) - base
    size = off[t.session + 1] - base
    _require(trace, (t.prefix_step >= -1) & (t.prefix_step < size), "prefix_step", t.prefix_step,
             "that step is missing: name an earlier step of the same session, or -1")
    _require(trace, t.prefix_step < own, "prefix_step", t.prefix_step, "name an earlier step, or -1")
    _require(trace, t.prefix_tokens >= 0, "prefix_tokens", t.prefix_tokens, "give 0 tokens or more")
    _require(trace, t.prefix_tokens <= t.prompt_tokens, "prefix_tokens", t.prefix_tokens,
             "keep it within the step's own prompt_tokens")
    inner = t.prefix_step >= 0
    named = np.where(inner, base + t.prefix_step, 0)
    context = (t.prompt_tokens + t.output_tokens)[named] if trace.n_steps else t.prompt_tokens
    _require(trace, ~inner | (t.prefix_tokens <= context), "prefix_tokens", t.prefix_tokens,
             "keep it within the context (prompt + output) of prefix_step")
    _require(trace, (t.shared_prefix >= -1) & (t.shared_prefix < len(trace.shared_prefixes)), "shared_prefix",
             t.shared_prefix, f"use a code below {len(trace.shared_prefixes)}, or -1 for none")
    _require(trace, inner | (t.shared_prefix >= 0) | (t.prefix_tokens == 0), "prefix_tokens", t.prefix_tokens,
             "name the step or the shared text that the prefix belongs to")
    blocks = np.diff(t.hash_offsets)
    b = trace.meta.hash_block_tokens
    _require(trace, (blocks == 0) | (b > 0), "hashes", blocks, "state meta.hash_block_tokens")
    _require(trace, blocks * b < t.prompt_tokens - t.prefix_tokens + max(b, 1), "hashes", blocks,
             f"give at most one id a block of {b} tokens after the prefix")


def previous_of_agent(trace: Trace) -> NDArray[np.int64]:
    """(n_steps,) the row of the same agent's previous step in its session, -1 at an agent's first step."""
    t = trace.steps
    order = np.lexsort((np.arange(trace.n_steps), t.agent, t.session))
    out = np.full(trace.n_steps, -1, np.int64)
    if trace.n_steps > 1:
        a, b = order[:-1], order[1:]
        same = (t.session[a] == t.session[b]) & (t.agent[a] == t.agent[b])
        out[b[same]] = a[same]
    return out


def _first(bad: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(bad)) if bad.any() else None


def _require(trace: Trace, good: NDArray[np.bool_], name: str, values: NDArray, mend: str) -> None:
    i = _first(~good)
    if i is not None:
        raise _step_error(trace, i, name, f"is {values[i]}", mend)


def _session_error(trace: Trace, s: int, name: str, cause: str, mend: str) -> UserError:
    return UserError(f"session {trace.sessions.session_id[s]!r}, {name}", cause, mend)


def _step_error(trace: Trace, row: int, name: str, cause: str, mend: str) -> UserError:
    s = int(np.searchsorted(trace.session_offsets, row, side="right")) - 1
    step = row - int(trace.session_offsets[s])
    return UserError(f"session {trace.sessions.session_id[s]!r}, step {step}, {name}", cause, mend)
