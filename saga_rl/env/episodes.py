"""Where episodes come from: a trace or a generator, and a seeded choice of sessions and arrivals for each episode."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.split import split as split_trace
from saga_rl.aeg.trace import Sessions, Trace
from saga_rl.errors import UserError, unknown_name
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost.profile import load_profile


def load_source(trace: Trace | str | Path | None, generator: str | None, params: Mapping[str, Any] | None, *,
                importer: str | None = None, load: float = 1.0, split: Mapping[str, float] | None = None,
                part: str = "", split_seed: int = 0) -> Trace:
    """Make the trace that `trace` is or names, or that `generator` makes from `params` (among them `seed`, default 0).

    A file name may hold environment variables, as in `$SAGA_RL_DATA/mine.parquet`. importer: the file is a recording
    that `saga_rl.aeg.importers` reads so, with options `params`. split: shares of the sessions by part, of which `part`
    is taken; load: arrivals come so many times as fast. Raises `UserError`.
    """
    if (trace is None) == (generator is None):
        raise UserError("environment", "needs exactly one of trace and generator", "pass one of the two")
    if not 0 < load < math.inf:
        raise UserError("load", f"is {load:g}", "give a number above 0: how many times as fast sessions arrive")
    if isinstance(trace, Trace):
        made = trace
    elif trace is not None:
        made = _read(_named(trace), importer, dict(params or {}))
    else:
        from saga_rl.aeg.generators import generate

        rest = dict(params or {})
        made = generate(str(generator), int(rest.pop("seed", 0)), **rest)
    if split:
        if part not in split:
            raise unknown_name("part of the split", part, split)
        made = split_trace(made, dict(split), split_seed)[part]
    if load == 1.0:
        return made
    arrival = made.sessions.arrival_s
    return arrange(made, np.arange(made.n_sessions), arrival[0] + (arrival - arrival[0]) / load)


def _named(path: str | Path) -> Path:
    """The path with environment variables filled in."""
    text = os.path.expandvars(str(path))
    if left := re.search(r"\$\{?(\w+)", text):
        raise UserError(path, f"names the environment variable {left[1]}, which is not set",
                        f"set {left[1]} to the folder that holds the file")
    return Path(text)


def _read(path: Path, importer: str | None, params: dict[str, Any]) -> Trace:
    if importer is None:
        if params:
            raise UserError("params", "are given for a trace file", "leave them out, or name its importer")
        from saga_rl.aeg.io import read_trace

        return read_trace(path)
    from saga_rl.aeg.importers import import_trace

    return import_trace(importer, path, **params)


def arrange(trace: Trace, rows: NDArray[np.integer], arrival_s: NDArray[np.float64]) -> Trace:
    """The sessions `rows` (each at most once), in that order, arriving at `arrival_s` (non-decreasing).

    Deadlines move with their session. Recorded times and cache hits are dropped: they belong to another arrangement.
    """
    rows = np.asarray(rows, np.int64)
    s, t = trace.sessions, trace.steps
    lengths = np.diff(trace.session_offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    idx = np.repeat(trace.session_offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    parent_offsets, parents = _ragged(t.parent_offsets, t.parents, idx)
    hash_offsets, hashes = _ragged(t.hash_offsets, t.hashes, idx)
    columns = {k: getattr(t, k)[idx] for k in ("agent", "tool", "tool_s", "think_s", "prompt_tokens", "output_tokens",
                                               "prefix_step", "prefix_tokens", "shared_prefix")}
    unknown = np.full(len(idx), np.nan)
    steps = replace(t, session=np.repeat(np.arange(len(rows), dtype=np.int32), lengths), parent_offsets=parent_offsets,
                    parents=parents, hash_offsets=hash_offsets, hashes=hashes, start_s=unknown, first_token_s=unknown,
                    end_s=unknown, cached_tokens=np.full(len(idx), -1, np.int64), **columns)
    arrival = np.asarray(arrival_s, np.float64)
    sessions = Sessions([s.session_id[i] for i in rows], [s.group[i] for i in rows], s.tenant[rows],
                        s.agent_type[rows], arrival, s.deadline_s[rows] - s.arrival_s[rows] + arrival)
    return replace(trace, sessions=sessions, steps=steps, session_offsets=offsets)


def _ragged(offsets: NDArray, values: NDArray, idx: NDArray) -> tuple[NDArray, NDArray]:
    lengths = np.diff(offsets)[idx]
    out = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return out, values[np.repeat(offsets[:-1][idx] - out[:-1], lengths) + np.arange(out[-1])]


def resample(trace: Trace, rng: np.random.Generator, sessions: int = 0) -> Trace:
    """Draw `sessions` of the trace's sessions (0 = all) in random order, the gaps between arrivals with replacement
    from the trace's own: the same load, another day."""
    n = trace.n_sessions if sessions == 0 else min(sessions, trace.n_sessions)
    return _drawn(trace, rng, rng.permutation(trace.n_sessions)[:n])


def pick(trace: Trace, rng: np.random.Generator | None, ids: Sequence[str | int]) -> Trace:
    """Take the sessions that `ids` name, by session id or number: in that order, with gaps drawn by `rng` as `resample`
    does; without it in the trace's order, as it has them. Raises `UserError` for a session that is not there, or twice.
    """
    number = {name: k for k, name in enumerate(trace.sessions.session_id)}
    rows = []
    for one in ids:
        row = number.get(one, -1) if isinstance(one, str) else int(one)
        if not 0 <= row < trace.n_sessions or row in rows:
            wrong = "there twice" if row in rows else "not in the trace"
            raise UserError("sessions", f"name {one!r}, which is {wrong}",
                            f"give each once, as a session id or a number below {trace.n_sessions}")
        rows.append(row)
    if not rows:
        raise UserError("sessions", "name none", "give at least one session")
    if rng is not None:
        return _drawn(trace, rng, np.array(rows))
    at = np.sort(np.array(rows))
    return arrange(trace, at, trace.sessions.arrival_s[at] - trace.sessions.arrival_s[at[0]])


def _drawn(trace: Trace, rng: np.random.Generator, rows: NDArray[np.int64]) -> Trace:
    n, gaps = len(rows), np.diff(trace.sessions.arrival_s)
    drawn = rng.choice(gaps, n - 1) if len(gaps) and n > 1 else np.zeros(n - 1)
    return arrange(trace, rows, np.concatenate([[0.0], np.cumsum(drawn)]))


def sim_config(kv_tokens: int, workers: int = 1, population: int = 0, profile: str | None = None,
               ends: bool = False) -> SimConfig:
    """The simulator's configuration from what the environments and scripts let a person set."""
    base = SimConfig(workers=workers, kv_tokens=kv_tokens, population=population, end_hint=ends)
    return base if profile is None else replace(base, profile=load_profile(profile))


def demand_tokens(trace: Trace, config: SimConfig) -> int:
    """KV tokens that all live chains hold together when memory is no limit: the median over the moments at which a step
    is sent. A capacity of demand / 2 is a pressure of 2."""
    context = trace.steps.prompt_tokens + trace.steps.output_tokens
    roomy = replace(config, kv_tokens=int(context.sum()) + config.block_tokens * (trace.n_steps + 1))
    result = simulate(trace, roomy, preset("lru"), seed=0)
    chain = trace.steps.session.astype(np.int64) * (int(trace.steps.agent.max()) + 1) + trace.steps.agent
    order = np.lexsort((result.steps["ready_s"], chain))
    first = np.concatenate([[True], np.diff(chain[order]) != 0])
    last = np.concatenate([first[1:], [True]])
    ctx = context[order].astype(np.float64)
    grown = ctx - np.where(first, 0.0, np.concatenate([[0.0], ctx[:-1]]))
    times = np.concatenate([result.steps["ready_s"][order], result.steps["done_s"][order][last]])
    change = np.concatenate([grown, -ctx[last]])
    by_time = np.argsort(times, kind="stable")
    return int(np.median(np.cumsum(change[by_time])))


def capacities_for(trace: Trace, config: SimConfig, pressures: Sequence[float]) -> list[int]:
    """KV tokens at which `demand_tokens` is so many times the pool, for each pressure, but never less than the longest
    context + 10 % (a longer one could not run at all); whole blocks."""
    longest = int((trace.steps.prompt_tokens + trace.steps.output_tokens).max())
    demand = demand_tokens(trace, config)
    blocks = [math.ceil(max(demand / p, 1.1 * longest) / config.block_tokens) for p in pressures]
    return [b * config.block_tokens for b in blocks]
