"""Twins of the simulator's cache made of vLLM's own parts (no model, no forward pass), and the simulator's side of the
comparison. Both are driven event by event and tell of blocks in the same words: (segment, offset in it)."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
vllm = pytest.importorskip("vllm", reason="vLLM is not installed (extra serve or serve-cpu)")

import torch  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_block_hash, get_request_block_hasher, init_none_hash  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402

from saga_rl.aeg.forest import Forest, build_forest  # noqa: E402
from saga_rl.aeg.trace import Trace  # noqa: E402
from saga_rl.sim import cache as kv  # noqa: E402

Block = tuple[int, int]
"""(segment of the forest, offset in it)"""

OWN, HASHED = 1 << 40, 1 << 50
_NAMES: dict[object, int] = {}


def exact_hash(value: object) -> bytes:
    """A block hash without collisions, and cheap: the number of what is hashed (parent's number, tokens)."""
    return _NAMES.setdefault(value, len(_NAMES)).to_bytes(8, "big")


init_none_hash(exact_hash)


def contexts(trace: Trace, block: int) -> list[NDArray[np.int64]]:
    """Token ids of each step's context (prompt + output): equal ids where `Trace` says that the content is equal. As
    for the forest, hashes name content in whole KV blocks from where the prefix ends."""
    t, hashed = trace.steps, trace.meta.hash_block_tokens
    unit, fresh = math.lcm(hashed, block) if hashed else 1, OWN
    out: list[NDArray[np.int64]] = []
    for i in range(trace.n_steps):
        want, p = int(t.prompt_tokens[i] + t.output_tokens[i]), int(t.prefix_tokens[i])
        mine = np.arange(fresh, fresh + want)
        fresh += want
        if t.prefix_step[i] >= 0:
            mine[:p] = out[trace.session_offsets[t.session[i]] + t.prefix_step[i]][:p]
        elif p:
            mine[:p] = (int(t.shared_prefix[i]) << 24) + np.arange(p)
        ids = t.hashes[t.hash_offsets[i]:t.hash_offsets[i + 1]]
        if len(ids) and p % unit == 0:
            known = (HASHED + ids[:, None] * hashed + np.arange(hashed)).ravel()
            n = min(len(known), int(t.prompt_tokens[i]) - p) // unit * unit
            mine[p:p + n] = known[:n]
        out.append(mine)
    return out


class Places:
    """Which block of the forest a block hash stands for. That the two agree one to one is asserted as hashes come."""

    def __init__(self, trace: Trace, block: int) -> None:
        self.forest: Forest = build_forest(trace, block)
        self._of: dict[bytes, Block] = {}
        self._hash: dict[Block, bytes] = {}
        self._paths: dict[int, list[Block]] = {}
        self._learnt: dict[int, int] = {}

    def path(self, step: int) -> list[Block]:
        f = self.forest
        segments = f.path[f.path_offsets[step]:f.path_offsets[step + 1]].tolist()
        out = [(s, k) for s in segments for k in range(int(f.seg_blocks[s]))]
        return out[:int(f.context_blocks[step])]

    def learn(self, step: int, hashes: list) -> None:
        """hashes: of the step's leading blocks; those that an earlier call named are passed over."""
        if step not in self._paths:
            self._paths[step] = self.path(step)
        path, first = self._paths[step], self._learnt.get(step, 0)
        self._learnt[step] = len(hashes)
        for h, place in zip(hashes[first:], path[first:], strict=False):
            assert self._of.setdefault(bytes(h), place) == place, "equal tokens, two blocks of the forest"
            assert self._hash.setdefault(place, bytes(h)) == bytes(h), "one block of the forest, different tokens"

    def common(self, a: int, b: int) -> int:
        """Leading blocks that the contexts of two steps share."""
        f, total = self.forest, 0
        for s, t in zip(*(f.path[f.path_offsets[i]:f.path_offsets[i + 1]].tolist() for i in (a, b)), strict=False):
            if s != t:
                break
            total += int(f.seg_blocks[s])
        return min(total, int(f.context_blocks[a]), int(f.context_blocks[b]))

    def of(self, block_hash: Any) -> Block:
        return self._of[bytes(get_block_hash(block_hash))]


def kv_config(blocks: int, block: int) -> KVCacheConfig:
    """One full-attention group; vLLM takes one of its blocks as its null block."""
    spec = FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return KVCacheConfig(num_blocks=blocks + 1, kv_cache_tensors=[],
                         kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])


def make_request(name: str, tokens: NDArray[np.int64], prompt: int, block: int) -> Request:
    """Asks for the rest of `tokens` after the first `prompt`; never stops earlier."""
    params = SamplingParams(max_tokens=len(tokens) - prompt, ignore_eos=True)
    params.update_from_generation_config({}, 2)
    return Request(request_id=name, prompt_token_ids=tokens[:prompt].tolist(), sampling_params=params,
                   pooling_params=None, block_hasher=get_request_block_hasher(block, exact_hash))


class Watch:
    """What happens in a vLLM `BlockPool`: victims in order, and copies of blocks that are cached already."""

    def __init__(self, pool: Any, places: Places) -> None:
        self.pool, self.places = pool, places
        self.victims: list[Block] = []
        self.copies: list[Block] = []
        self._evict, self._insert = pool._maybe_evict_cached_block, pool._insert_block_hash
        pool._maybe_evict_cached_block, pool._insert_block_hash = self._evicting, self._inserting

    def _evicting(self, block: Any) -> bool:
        name = block.block_hash
        gone = self._evict(block)
        if gone:
            self.victims.append(self.places.of(name))
        return gone

    def _inserting(self, name: Any, block: Any, num_tokens: int | None) -> None:
        if self.pool.cached_block_hash_to_block.get_one_block(name) is not None:
            self.copies.append(self.places.of(name))
        self._insert(name, block, num_tokens=num_tokens)

    def resident(self) -> set[Block]:
        """Content that a lookup could find now."""
        return {self.places.of(name) for name in self.pool.cached_block_hash_to_block._cache}

    def take_victims(self) -> list[Block]:
        out, self.victims = self.victims, []
        return out


class VllmCache:
    """vLLM's `KVCacheManager` over its `BlockPool`, driven the way its scheduler drives it."""

    def __init__(self, trace: Trace, pool_blocks: int, block: int) -> None:
        self.trace, self.block, self.tokens = trace, block, contexts(trace, block)
        self.places = Places(trace, block)
        longest = max(len(t) for t in self.tokens)
        self.kv = KVCacheManager(kv_config(pool_blocks, block), max_model_len=longest + 1, scheduler_block_size=block,
                                 hash_block_size=block)
        self.watch = Watch(self.kv.block_pool, self.places)
        self.requests: dict[int, Request] = {}
        self.running: set[int] = set()

    @property
    def available(self) -> int:
        """Blocks that are empty or may be evicted."""
        return self.kv.block_pool.get_num_free_blocks()

    def start(self, step: int, chunk: int) -> int | None:
        """Admit the step with at most `chunk` tokens. Returns its cached blocks, None if it does not fit."""
        r = self.requests.get(step)
        if r is None:
            prompt = int(self.trace.steps.prompt_tokens[step])
            r = self.requests[step] = make_request(str(step), self.tokens[step], prompt, self.block)
        self.places.learn(step, r.block_hashes)
        found, hit, _ = self.kv.get_computed_blocks(r)
        n = min(r.num_tokens - hit, chunk)
        if self.kv.allocate_slots(r, n, hit, found) is None:
            return None
        r.status, r.num_computed_tokens = RequestStatus.RUNNING, hit + n
        self.running.add(step)
        return hit // self.block

    def grow(self, step: int, chunk: int) -> bool:
        """Go on by at most `chunk` tokens; False if that does not fit."""
        r = self.requests[step]
        n = min(r.num_tokens - r.num_computed_tokens, chunk)
        if self.kv.allocate_slots(r, n) is None:
            return False
        r.num_computed_tokens += n
        return True

    def sample(self, step: int, n: int) -> None:
        """The next `n` tokens of the answer are known (their KV is not computed)."""
        r = self.requests[step]
        r.append_output_token_ids(self.tokens[step][r.num_tokens:r.num_tokens + n].tolist())
        self.places.learn(step, r.block_hashes)

    def end(self, step: int, done: bool) -> None:
        """Release the step: it is done, or preempted."""
        r = self.requests[step]
        self.kv.free(r)
        r.num_computed_tokens, r.status = 0, RequestStatus.PREEMPTED
        self.running.discard(step)
        if done:
            del self.requests[step]


def resident_blocks(pool: kv.Pool, w: int = 0) -> NDArray[np.int32]:
    """(segments,) leading blocks of each segment that are resident on worker w."""
    ids, segments, mask = pool.meta[kv.IDS], pool.meta[kv.SEGMENTS], pool.meta[kv.MASK]
    assert mask == 0, "small pools have a row for every pair of worker and segment"
    return pool.res[w * ids:w * ids + segments]


class SimCache:
    """The simulator's pool, with the calls that its engine makes. Room is made in steps that touch one segment each, so
    that the order of victims shows; `bulk` is a second pool that makes room in one call, as the engine does."""

    def __init__(self, trace: Trace, pool_blocks: int, block: int) -> None:
        forest = build_forest(trace, block)
        self.trace, self.block, self.tree = trace, block, kv.make_tree(forest)
        self.single, self.bulk = (kv.make_pool(1, pool_blocks, len(forest.seg_parent), len(forest.chain_session))
                                  for _ in range(2))
        self.state: dict[int, list[int]] = {}
        """step -> tokens computed and, for each pool, path index held and private copies"""
        self.known: dict[int, int] = {}
        self.victims: list[Block] = []
        self.copies = 0
        self.clock = 0.0

    @property
    def available(self) -> int:
        return int(self.single.n[0, kv.FREE] + kv.evictable(self.single, 0))

    def _room(self, need: int) -> None:
        while (short := need - int(self.single.n[0, kv.FREE])) > 0:
            left = self._take(1)
            if short > 1 and left > 0:
                self._take(min(short - 1, left))
        kv.make_room_oldest_first(self.tree, self.bulk, 0, need)

    def _take(self, blocks: int) -> int:
        """Evict so many. Returns what is left of the segment that they came from; its tail goes first."""
        before = resident_blocks(self.single).copy()
        kv.make_room_oldest_first(self.tree, self.single, 0, int(self.single.n[0, kv.FREE]) + blocks)
        (segment,) = np.flatnonzero(before != resident_blocks(self.single)).tolist()
        had, has = int(before[segment]), int(resident_blocks(self.single)[segment])
        self.victims += [(segment, k) for k in range(had - 1, has - 1, -1)]
        return has

    def cached(self, step: int) -> int:
        """Blocks that a lookup would find: at most all but the last token's."""
        found = kv.resident_prefix(self.tree, self.single, 0, step)
        return min(found, (self.known_tokens(step) - 1) // self.block)

    def resident_prefix(self, step: int) -> int:
        return int(kv.resident_prefix(self.tree, self.single, 0, step))

    def known_tokens(self, step: int) -> int:
        return self.known.get(step, int(self.trace.steps.prompt_tokens[step]))

    def start(self, step: int, chunk: int) -> int | None:
        cached = self.cached(step)
        have = cached * self.block
        want = have + min(self.known_tokens(step) - have, chunk)
        need = -(-want // self.block) - cached
        idle = kv.idle_hit_blocks(self.tree, self.single, 0, step, cached)
        if self.available - idle < need:
            return None
        held = [int(kv.pin(self.tree, pool, 0, step, 0, cached)) for pool in (self.single, self.bulk)]
        self.state[step] = [have, held[0], 0, held[1], 0]
        self._extend(step, want, need)
        return cached

    def grow(self, step: int, chunk: int) -> bool:
        have = self.state[step][0]
        want = have + min(self.known_tokens(step) - have, chunk)
        need = -(-want // self.block) - -(-have // self.block)
        if self.available < need:
            return False
        self._extend(step, want, need)
        return True

    def _extend(self, step: int, want: int, need: int) -> None:
        self._room(need)
        s = self.state[step]
        for at, pool in ((1, self.single), (3, self.bulk)):
            s[at], copies = kv.grow(self.tree, pool, 0, step, s[at], s[0], want, self.block)
            s[at + 1] += copies
        self.copies += copies
        s[0] = want

    def sample(self, step: int, n: int) -> None:
        self.known[step] = self.known_tokens(step) + n

    def end(self, step: int, done: bool) -> None:
        self.clock += 1.0
        have, *rest = self.state.pop(step)
        for pool, held, copies in ((self.single, *rest[:2]), (self.bulk, *rest[2:])):
            kv.release(self.tree, pool, 0, step, held, have, copies, self.clock, self.block)
        if done:
            self.known.pop(step, None)

    def resident(self) -> set[Block]:
        res = resident_blocks(self.single)
        np.testing.assert_array_equal(res, resident_blocks(self.bulk))
        return {(int(s), k) for s in np.flatnonzero(res) for k in range(int(res[s]))}

    def take_victims(self) -> list[Block]:
        out, self.victims = self.victims, []
        return out
