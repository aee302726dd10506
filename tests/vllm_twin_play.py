"""One history of requests played to both caches: vLLM's `KVCacheManager` and the simulator's pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vllm_twin_caches import SimCache, VllmCache

from saga_rl.aeg.trace import Trace


class Play:
    """Requests start, compute chunks, answer, are preempted and end. After each move both sides must have hit as many
    blocks, and evicted the same blocks in the same order.

    A move is left out, and counted in `kept_out`, where vLLM would cache a second copy of a block:

    - *aligned*: a prompt that ends where a block ends and is cached to its end. Its last token is computed anyway, and
      with it a copy of its last block;
    - *together*: a block that another running request also has still to compute.
    """

    def __init__(self, trace: Trace, pool_blocks: int, block: int) -> None:
        self.trace, self.block = trace, block
        self.vllm, self.sim = VllmCache(trace, pool_blocks, block), SimCache(trace, pool_blocks, block)
        self.computed: dict[int, int] = {}
        """Tokens by running step, in the order in which they started."""
        self.generated = dict.fromkeys(range(trace.n_steps), 0)
        self.kept_out = {"aligned": 0, "together": 0}
        self.done: set[int] = set()
        self.count = {"moves": 0, "hit": 0, "evicted": 0, "refused": 0, "preempted": 0}

    def known(self, step: int) -> int:
        return int(self.trace.steps.prompt_tokens[step]) + self.generated[step]

    def _together(self, step: int, have: int, want: int) -> bool:
        """Would the step compute a block that another running one also has still to compute?"""
        first, last = have // self.block, want // self.block
        found = first < last and any(
            max(first, computed // self.block) < min(last, self.vllm.places.common(step, other))
            for other, computed in self.computed.items() if other != step)
        self.kept_out["together"] += found
        return found

    def start(self, step: int, chunk: int) -> bool:
        cached = self.sim.cached(step)
        if self.sim.resident_prefix(step) > cached:
            self.kept_out["aligned"] += 1
            self.done.add(step)  # it is never served, and what follows it computes what it would have
            return False
        have = cached * self.block
        want = have + min(self.known(step) - have, chunk)
        if self._together(step, have, want):
            return False
        ours, theirs = self.sim.start(step, chunk), self.vllm.start(step, chunk)
        assert ours == theirs, f"step {step}: {ours} blocks hit, vLLM {theirs}"
        if ours is not None:
            self.count["hit"] += ours
            self.computed[step] = want
        return self._moved(ours is not None)

    def grow(self, step: int, chunk: int, answer: int = 1) -> bool:
        """The next chunk of a running step. If all that is known is computed, `answer` more tokens become known."""
        have = self.computed[step]
        more = min(answer, self._end(step) - have) if have == self.known(step) else 0
        want = have + min(self.known(step) + more - have, chunk)
        if self._together(step, have, want):
            return False
        if more:
            self._sample(step, more)
        ours, theirs = self.sim.grow(step, chunk), self.vllm.grow(step, chunk)
        assert ours == theirs, f"step {step}: {'fits' if ours else 'does not fit'}, vLLM does not agree"
        if ours:
            self.computed[step] = want
        return self._moved(ours)

    def _sample(self, step: int, n: int) -> None:
        self.generated[step] += n
        self.sim.sample(step, n)
        self.vllm.sample(step, n)

    def _end(self, step: int) -> int:
        """Tokens of the step that are ever computed: all but the answer's last."""
        return int(self.trace.steps.prompt_tokens[step] + self.trace.steps.output_tokens[step]) - 1

    def complete(self, step: int) -> bool:
        return self.computed[step] == self._end(step)

    def end(self, step: int) -> None:
        """Release a running step: it is done if it is complete, else it is preempted."""
        done = self.complete(step)
        if not done and self.computed[step] == self.known(step):
            self._sample(step, 1)  # what it computed gave a token before anyone could preempt it
        del self.computed[step]
        if done:
            self.done.add(step)
        else:
            self.count["preempted"] += 1
        self.sim.end(step, done)
        self.vllm.end(step, done)
        self._moved(True)

    def _moved(self, fits: bool) -> bool:
        ours, theirs = self.sim.take_victims(), self.vllm.watch.take_victims()
        assert ours == theirs, f"victims {ours}, vLLM {theirs}"
        assert self.sim.available == self.vllm.available
        assert not self.vllm.watch.copies
        self.count["moves"] += 1
        self.count["evicted"] += len(ours)
        self.count["refused"] += not fits
        return fits

    def compare_resident(self) -> None:
        assert self.sim.resident() == self.vllm.watch.resident()

    # -------------------------------------------------------------- histories
    def born(self, step: int) -> bool:
        """All its parents are done."""
        t, off = self.trace.steps, self.trace.session_offsets
        parents = t.parents[t.parent_offsets[step]:t.parent_offsets[step + 1]] + off[t.session[step]]
        return all(int(p) in self.done for p in parents)

    def act(self, choose: Callable[[int], int]) -> bool:
        """One random move, the choices made by `choose(n)` (0 .. n - 1). False: nothing is left to do."""
        running = sorted(self.computed)
        waiting = [i for i in range(self.trace.n_steps)
                   if i not in self.done and i not in self.computed and self.born(i)]
        if not waiting and not running:
            return False
        at = choose(len(waiting) + 2 * len(running))
        if at < len(waiting):
            self.start(waiting[at], 1 + choose(10 * self.block))
            return True
        step = running[(at - len(waiting)) // 2]
        if self.complete(step) or choose(12) == 0:
            self.end(step)
        else:
            self.grow(step, 1 + choose(4 * self.block), 1 + choose(2 * self.block))
        return True

    def serve(self, order: list[int], width: int, chunk: int, answer: int) -> None:
        """Serve the steps in `order`, at most `width` at a time: each turn every running step goes on by a chunk, and
        waiting ones start while they fit. When blocks run out, the one that started last is preempted."""
        waiting = deque(order)
        while waiting or self.computed:
            for step in list(self.computed):
                if step in self.computed:
                    self._turn(step, waiting, chunk, answer)
            while waiting and len(self.computed) < width and self.born(waiting[0]):
                if self.start(waiting[0], chunk) or waiting[0] in self.done:
                    waiting.popleft()
                else:
                    break

    def _turn(self, step: int, waiting: deque[int], chunk: int, answer: int) -> None:
        if self.complete(step):
            self.end(step)
            return
        kept_out = self.kept_out["together"]
        while not self.grow(step, chunk, answer) and self.kept_out["together"] == kept_out:
            last = list(self.computed)[-1]
            self.end(last)
            if last not in self.done:
                waiting.appendleft(last)
            if last == step:
                break
