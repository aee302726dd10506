"""One worker, written a second time without segments, heaps or compiled code: every block is an entry of a dictionary,
found by its content. Stock rules only (LRU, FCFS, no admission). Slow on purpose; the simulator must agree."""

from __future__ import annotations

from saga_rl.aeg.trace import Trace
from saga_rl.sim.config import SimConfig


def contents(trace: Trace) -> list[list[int]]:
    """Token ids of each step's context (prompt + output); what is not shared is unique."""
    fresh, out = iter(range(10**9)), []
    t = trace.steps
    for i in range(trace.n_steps):
        base: list[int] = []
        if t.prefix_step[i] >= 0:
            base = out[trace.session_offsets[t.session[i]] + t.prefix_step[i]][:t.prefix_tokens[i]]
        want = int(t.prompt_tokens[i] + t.output_tokens[i])
        out.append(base + [next(fresh) for _ in range(want - len(base))])
    return out


class _Request:
    def __init__(self, step: int, tokens: list[int], prompt: int, output: int, block: int) -> None:
        self.step, self.prompt, self.output = step, prompt, output
        self.ids = [tuple(tokens[: (k + 1) * block]) for k in range(len(tokens) // block)]
        self.generated = self.computed = self.scheduled = self.target = 0
        self.copies = 0  # full blocks that somebody else had published


class NaiveWorker:
    """`run()` -> per step: first_token_s, done_s, cached_tokens (at first scheduling)."""

    def __init__(self, trace: Trace, config: SimConfig) -> None:
        self.trace, self.config, self.block = trace, config, config.block_tokens
        self.free = config.pool_blocks
        self.cached: dict[tuple, list[int]] = {}  # content -> [holders, release number]
        self.clock = 0
        self.waiting: list[_Request] = []
        self.running: list[_Request] = []
        self.first: dict[int, float] = {}
        self.done: dict[int, float] = {}
        self.hits: dict[int, int] = {}
        self.preemptions = 0

    def _up(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def _idle(self) -> list[tuple]:
        return [b for b, (holders, _) in self.cached.items() if holders == 0]

    def _room(self, need: int) -> None:
        while self.free < need:
            victim = min(self._idle(), key=lambda b: self.cached[b][1])
            del self.cached[victim]
            self.free += 1

    def _allocate(self, r: _Request, n: int) -> None:
        need, first = self._up(r.computed + n) - self._up(r.computed), r.computed // self.block
        own = first < (r.computed + n) // self.block and self.cached.get(r.ids[first], [1])[0] == 0
        if own:  # cached, held by nobody, and to be computed anew: it is computed in place
            self.cached[r.ids[first]][0] = 1
            need, first = need - 1, first + 1
        self._room(need)
        self.free -= need
        for k in range(first, (r.computed + n) // self.block):
            if r.ids[k] in self.cached:
                self.cached[r.ids[k]][0] += 1
                r.copies += 1
            else:
                self.cached[r.ids[k]] = [1, 0]
        r.scheduled = n

    def _release(self, r: _Request) -> None:
        for k in range(r.computed // self.block - 1, -1, -1):
            entry = self.cached[r.ids[k]]
            entry[0] -= 1
            if entry[0] == 0:
                self.clock += 1
                entry[1] = self.clock
        self.free += r.copies + (1 if r.computed % self.block else 0)
        r.copies = 0

    def _schedule(self) -> float:
        budget, prefill, kv, decoding, preempted, k = self.config.batched_tokens, 0, 0, 0, False, 0
        pairs, context = 0.0, 0
        while k < len(self.running) and budget > 0:
            r = self.running[k]
            n = min(r.prompt + r.generated - r.computed, budget)
            need = self._up(r.computed + n) - self._up(r.computed)
            while self.free + len(self._idle()) < need:
                preempted = True
                last = self.running.pop()
                self._release(last)
                last.computed = 0
                self.preemptions += 1
                self.waiting.insert(0, last)
                if last is r:
                    break
            if k >= len(self.running):
                break
            if r.computed < r.target:
                prefill += n
                pairs += n * (r.computed + n / 2)
                context += r.computed
            else:
                decoding += 1
                kv += r.computed
            self._allocate(r, n)
            budget -= n
            k += 1
        while not preempted and self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            r = self.waiting[0]
            known = r.prompt + r.generated
            hit = 0
            while hit < (known - 1) // self.block and hit < len(r.ids) and r.ids[hit] in self.cached:
                hit += 1
            n = min(known - hit * self.block, budget)
            need = self._up(known if self.config.reserve_full_prompt else hit * self.block + n) - hit
            touched = sum(self.cached[r.ids[k]][0] == 0 for k in range(hit))
            if self.free + len(self._idle()) - touched < need:
                break
            self.waiting.pop(0)
            self.running.append(r)
            for j in range(hit):
                self.cached[r.ids[j]][0] += 1
            r.computed, r.target = hit * self.block, known
            self.hits.setdefault(r.step, r.computed)
            self._allocate(r, n)
            prefill += n
            pairs += n * (r.computed + n / 2)
            context += r.computed
            budget -= n
        if not prefill and not decoding:
            return 0.0
        return self.config.profile.seconds(prefill, pairs, context, kv, decoding)

    def run(self) -> tuple[dict[int, float], dict[int, float], dict[int, int]]:
        t, trace = self.trace.steps, self.trace
        tokens = contents(trace)
        arrivals: list[tuple[float, int]] = []
        pending = {i: int(t.parent_offsets[i + 1] - t.parent_offsets[i]) for i in range(trace.n_steps)}
        ready = dict.fromkeys(range(trace.n_steps), 0.0)
        for i in range(trace.n_steps):
            if pending[i] == 0:
                arrivals.append((float(trace.sessions.arrival_s[t.session[i]]), i))
        now, busy_until = 0.0, None
        while arrivals or busy_until is not None:
            arrivals.sort()
            if busy_until is not None and (not arrivals or busy_until <= arrivals[0][0]):
                now, busy_until = busy_until, None
                for r in list(self.running):
                    self._advance(r, now, pending, ready, arrivals)
                arrivals.sort()
            while (arrivals and arrivals[0][0] <= now) or (busy_until is None and not self.running
                                                         and not self.waiting and arrivals):
                at, i = arrivals.pop(0)
                now = max(now, at)
                self.waiting.append(_Request(i, tokens[i], int(t.prompt_tokens[i]), int(t.output_tokens[i]),
                                             self.block))
                arrivals.sort()
            if busy_until is None:
                seconds = self._schedule()
                if seconds:
                    busy_until = now + seconds
            elif arrivals and arrivals[0][0] <= busy_until:
                now = arrivals[0][0]
        return self.first, self.done, self.hits

    def _advance(self, r: _Request, now: float, pending: dict, ready: dict, arrivals: list) -> None:
        t, trace = self.trace.steps, self.trace
        r.computed += r.scheduled
        r.scheduled = 0
        if r.computed < r.prompt + r.generated:
            return
        r.generated += 1
        self.first.setdefault(r.step, now)
        if r.generated < r.output:
            return
        self._release(r)
        self.running.remove(r)
        self.done[r.step] = now
        base = int(trace.session_offsets[t.session[r.step]])
        for c in range(r.step + 1, int(trace.session_offsets[t.session[r.step] + 1])):
            if r.step - base in t.parents[t.parent_offsets[c]:t.parent_offsets[c + 1]]:
                gap = float(t.tool_s[r.step] + t.think_s[r.step]) if t.agent[c] == t.agent[r.step] else 0.0
                ready[c] = max(ready[c], now + gap)
                pending[c] -= 1
                if pending[c] == 0:
                    arrivals.append((ready[c], c))
