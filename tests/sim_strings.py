"""Small random traces and reference strings, and their meaning in plain Python: sets of blocks, no forest."""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np

from saga_rl.aeg.build import SessionSpec, StepSpec, build_trace
from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace, TraceMeta
from saga_rl.aeg.validate import check
from saga_rl.sim.openloop.script import prepare
from saga_rl.sim.reference import END, READY, START, Reference

BLOCK = 4
TOOLS = (None, "bash", "web")


def random_trace(seed: int, *, sessions: int = 3, steps: int = 4, hashes: bool = False,
                 aligned: bool = False) -> Trace:
    """Chains, branches, sub-agents, retries, prompts that are all prefix, shared texts; in blocks of 4 tokens. aligned:
    many prompts end where a block of a prefix ends, so that their last block is known but may not be hit."""
    rng = random.Random(seed)
    hash_tokens = rng.choice([2, 4, 8]) if hashes else 0
    unit = max(hash_tokens, BLOCK)
    specs = []
    for s in range(rng.randint(1, sessions)):
        rows: list[StepSpec] = []
        last_of: dict[int, int] = {}
        for i in range(rng.randint(1, steps)):
            agent = 0 if i == 0 else rng.choice([0, 0, 0, 1])
            parents = {last_of[agent]} if agent in last_of else ({rng.randrange(i)} if i else set())
            prefix_step, prefix, shared = -1, 0, None
            if i and rng.random() < 0.8:
                prefix_step = last_of[agent] if agent in last_of and rng.random() < 0.7 else rng.randrange(i)
                context = rows[prefix_step].prompt_tokens + rows[prefix_step].output_tokens
                prefix = context if rng.random() < 0.6 else rng.randint(0, context)
            elif rng.random() < 0.7:
                shared = rng.choice(["policy", "manual"])
                prefix = rng.randint(1, 12)
            if hashes and rng.random() < 0.8:
                prefix -= prefix % unit
            if aligned:
                prefix -= prefix % BLOCK
            prompt = max(prefix + rng.choice([0, 0, 1, 2, 3, 5, 9] if not aligned else [0, 0, 0, 4, 7]), 1)
            ids: list[int] = []
            if hashes:
                ids = [rng.randint(1, 2) for _ in range(-(-(prompt - prefix) // hash_tokens))]
                ids = ids[:rng.randint(0, len(ids))]
            rows.append(StepSpec(prompt, rng.randint(1, 6), tuple(parents), agent, rng.choice(TOOLS),
                                 rng.choice([0.0, 0.3, 5.0]), 0.0, prefix_step, prefix,
                                 shared if prefix_step < 0 and prefix else None, ids))
            last_of[agent] = i
        specs.append(SessionSpec(f"s{s}", float(s), rows))
    trace = build_trace(TraceMeta("random", "generated:test", hash_block_tokens=hash_tokens), specs)
    check(trace)
    return trace


def naive_blocks(trace: Trace, block: int = BLOCK) -> list[list[object]]:
    """By step: the ids of its context's full blocks. Two blocks are the same exactly if all tokens up to their end are.

    Hashes identify whole hash blocks of the prompt, as far as those are whole KV blocks from where the prefix ends.
    """
    st, tokens, ids = trace.steps, [], {}
    unit = int(np.lcm(trace.meta.hash_block_tokens, block)) if trace.meta.hash_block_tokens else 0
    out = []
    for i in range(trace.n_steps):
        if st.prefix_step[i] >= 0:
            source = tokens[trace.session_offsets[st.session[i]] + st.prefix_step[i]]
        else:
            source = [("text", int(st.shared_prefix[i]), k) for k in range(st.prefix_tokens[i])]
        mine = list(source[:st.prefix_tokens[i]])
        p, hashes = len(mine), st.hashes[st.hash_offsets[i]:st.hash_offsets[i + 1]].tolist()
        if unit and p % unit == 0:
            whole = min(len(hashes) * trace.meta.hash_block_tokens, st.prompt_tokens[i] - p) // unit * unit
            mine += [("hash", hashes[k // trace.meta.hash_block_tokens], k % unit) for k in range(whole)]
        mine += [("own", i, k) for k in range(len(mine), st.prompt_tokens[i] + st.output_tokens[i])]
        tokens.append(mine)
        n = (len(mine) - 1) // block
        out.append([ids.setdefault(tuple(mine[:(k + 1) * block]), len(ids)) for k in range(n)])
    return out


def random_reference(trace: Trace, seed: int, *, slack: int | None = None, preemptions: int = 3) -> Reference:
    """Requests overlap, wait, are preempted during prefill and decode. slack: blocks of the pool beyond the smallest in
    which nothing is clipped (negative: the pool is recorded too small, and runs are clipped)."""
    rng = random.Random(seed)
    forest = build_forest(trace, BLOCK)
    st, off = trace.steps, trace.session_offsets
    n = trace.n_steps
    parents = [{int(off[st.session[i]] + p) for p in st.parents[st.parent_offsets[i]:st.parent_offsets[i + 1]]}
               for i in range(n)]
    unborn, waiting, running, done = set(range(n)), {}, {}, set()
    events: list[tuple[int, int, float, int, int]] = []
    now = 0.0
    while len(done) < n:
        ready = sorted(i for i in unborn if parents[i] <= done)
        moves = [("ready", i) for i in ready] + [("start", i) for i in sorted(waiting)]
        moves += [("end", i) for i in sorted(running)]
        what, i = rng.choice(moves)
        now += rng.choice([0.0, 0.2, 3.0, 30.0])
        if what == "ready":
            unborn.discard(i)
            waiting[i] = int(st.prompt_tokens[i])
            events.append((READY, i, now, int(st.prompt_tokens[i]), 0))
        elif what == "start":
            running[i] = waiting.pop(i)
            events.append((START, i, now, running[i], 0))
        else:
            tokens = running.pop(i)
            prompt, context = int(st.prompt_tokens[i]), int(st.prompt_tokens[i] + st.output_tokens[i])
            most = max(context - 2, tokens - 1)
            if preemptions and most >= 1 and rng.random() < 0.3:
                preemptions -= 1
                held = rng.randint(1, most)
                waiting[i] = held + 1 if held >= tokens else tokens
                events.append((END, i, now, held, 0))
            else:
                done.add(i)
                events.append((END, i, now, context - 1, 1))
            assert tokens >= prompt
    kind, step, time, held_tokens, final = zip(*events, strict=True)
    whole = Reference(trace, forest, 10**6, np.array(kind, np.int8), np.array(step, np.int32), np.array(time),
                      np.array(held_tokens, np.int64), np.array(final, np.int8))
    if slack is None:
        slack = rng.randint(0, 5)
    pool = max(prepare(whole, 10**6).smallest_pool_blocks + slack, 1)
    return replace(whole, kv_tokens=pool * BLOCK)


class NaiveString:
    """A reference string as sets of blocks: what must be present when, what a lookup may hit, what was known."""

    def __init__(self, r: Reference) -> None:
        self.blocks = naive_blocks(r.trace)
        self.pool = r.kv_tokens // BLOCK
        ends: dict[int, list[int]] = {}
        for k in range(len(r.kind)):
            if r.kind[k] == END:
                ends.setdefault(int(r.step[k]), []).append(int(r.tokens[k]))
        self.events: list[tuple[int, int, list, list, int, int]] = []
        """(kind, step, blocks that it holds from now on, blocks that it looks up, partly filled blocks, tokens)"""
        for k in range(len(r.kind)):
            step, tokens = int(r.step[k]), int(r.tokens[k])
            if r.kind[k] == START:
                held = min(tokens, ends[step].pop(0))
                path = self.blocks[step][:held // BLOCK]
                self.events.append((START, step, path, path[:min(tokens - 1, held) // BLOCK], held % BLOCK > 0, held))
            elif r.kind[k] == END:
                path = self.blocks[step][:tokens // BLOCK]
                self.events.append((END, step, path, [], tokens % BLOCK > 0, tokens))

    def known_before(self) -> list[set]:
        known: set = set()
        out = []
        for _, _, path, _, _, _ in self.events:
            out.append(set(known))
            known |= set(path)
        return out

    def lru(self) -> tuple[int, int, int]:
        """(tokens computed again, tokens hit, blocks evicted) under block LRU: one dictionary in order of release."""
        idle: OrderedDict = OrderedDict()
        running: dict[int, tuple[list, int]] = {}
        again = hits = evicted = 0
        known = self.known_before()
        for k, (kind, step, path, looked_up, partial, _) in enumerate(self.events):
            present = set(idle) | {b for p, _ in running.values() for b in p}
            hit = sum(b in present for b in looked_up)
            again += sum(b in known[k] for b in looked_up) - hit
            hits += hit
            running[step] = (path, partial)
            held = {b for p, _ in running.values() for b in p}
            for b in held & set(idle):
                del idle[b]
            while len(held) + sum(q for _, q in running.values()) + len(idle) > self.pool:
                idle.popitem(last=False)
                evicted += 1
            if kind == END:
                del running[step]
                others = {b for p, _ in running.values() for b in p}
                for b in reversed(path):
                    if b not in others:
                        idle[b] = None
        return again * BLOCK, hits * BLOCK, evicted

    def optimum(self) -> int:
        """Least tokens computed again over every choice of victims; a block goes only with all that follow it."""
        known, events, pool = self.known_before(), self.events, self.pool
        parent = {b: path[i - 1] if i else None for path in self.blocks for i, b in enumerate(path)}
        running_after: list[dict[int, tuple[tuple, int]]] = []
        running: dict[int, tuple[tuple, int]] = {}
        for kind, step, path, _, partial, _ in events:
            running = {**running, step: (tuple(path), partial)}
            running_after.append(running)
            if kind == END:
                running = {s: v for s, v in running.items() if s != step}

        @cache
        def best(k: int, resident: frozenset) -> int:
            if k == len(events):
                return 0
            looked_up = events[k][3]
            cost = sum(b in known[k] for b in looked_up) - sum(b in resident for b in looked_up)
            held = frozenset(b for p, _ in running_after[k].values() for b in p)
            private = sum(q for _, q in running_after[k].values())
            victims = sorted(resident - held)
            excess = len(resident | held) + private - pool
            if excess <= 0:
                return cost + best(k + 1, resident | held)
            options = []
            for gone in combinations(victims, excess):
                stay = (resident | held) - set(gone)
                if all(parent[b] is None or parent[b] in stay for b in stay):
                    options.append(best(k + 1, stay))
            return cost + min(options)

        return best(0, frozenset()) * BLOCK
