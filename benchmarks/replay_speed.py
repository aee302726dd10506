"""Speed of the compiled replay against a plain Python LRU over the same blocks, in the same process.

    python benchmarks/replay_speed.py [--sessions N] [--kv-tokens T] [--population P]

Prints events per second of every policy, and the ratio to an OrderedDict of blocks that does LRU and nothing else (no
features, no tables): the least that a simulator in plain Python would cost.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict

from saga_rl.aeg.generators import generate
from saga_rl.policies.registry import make
from saga_rl.sim.config import SimConfig
from saga_rl.sim.record import record_reference
from saga_rl.sim.reference import END, READY, START, Reference
from saga_rl.sim.replay import play
from saga_rl.sim.script import prepare


def plain_lru(r: Reference, pool: int) -> int:
    """Tokens hit under block LRU. Runs that do not fit hold what they need all the same: nothing is clipped here."""
    f, block = r.forest, r.forest.block_tokens
    blocks = []
    for i in range(len(f.chain)):
        segments = f.path[f.path_offsets[i]:f.path_offsets[i + 1]]
        places = [(int(s) << 32) + k for s in segments for k in range(f.seg_blocks[s])]
        blocks.append(places[:f.context_blocks[i]])
    idle: OrderedDict[int, None] = OrderedDict()
    held: dict[int, int] = {}
    have: dict[int, int] = {}
    hits = 0
    for kind, step, tokens in zip(r.kind.tolist(), r.step.tolist(), r.tokens.tolist(), strict=True):
        if kind == READY:
            continue
        mine, full = blocks[step], tokens // block
        if kind == START:
            have[step] = 0
            for b in mine[:(tokens - 1) // block]:
                if b not in idle and b not in held:
                    break
                hits += block
        for b in mine[have[step]:full]:
            held[b] = held.get(b, 0) + 1
            idle.pop(b, None)
        have[step] = max(have[step], full)
        while idle and len(idle) + len(held) > pool:
            idle.popitem(last=False)
        if kind == END:
            for b in reversed(mine[:have[step]]):
                held[b] -= 1
                if held[b] == 0:
                    del held[b]
                    idle[b] = None
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--kv-tokens", type=int, default=240_000)
    parser.add_argument("--population", type=int, default=4)
    args = parser.parse_args()
    config = SimConfig(kv_tokens=args.kv_tokens, population=args.population)
    reference = record_reference(generate("swe-bench", 0, sessions=args.sessions), config)
    prepared = prepare(reference, args.kv_tokens)
    n = len(reference.kind)
    started = time.perf_counter()
    hits = plain_lru(reference, prepared.pool_blocks)
    plain = time.perf_counter() - started
    print(f"{n:,} events, {reference.trace.n_steps:,} steps, {args.kv_tokens:,} KV tokens")
    print(f"{'plain Python LRU':20} {n / plain:12,.0f} events/s   hits {hits:,} tokens")
    for name in ("lru", "wa-lru", "wa-lru-literal", "belady"):
        policy = make("eviction", name)
        play(prepared, policy)
        best = min(_timed(prepared, policy) for _ in range(3))
        print(f"{name:20} {n / best:12,.0f} events/s   {plain / best:8.1f} x plain   hits "
              f"{play(prepared, policy).hit_tokens:,} tokens")


def _timed(prepared, policy) -> float:
    started = time.perf_counter()
    play(prepared, policy)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
