"""What comparing with vLLM takes: a trace's content as tokens, vLLM requests without a model, and a watch on vLLM's
block pool that tells of blocks in the simulator's words, (segment, offset in it)."""

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
from vllm.v1.core.kv_cache_utils import get_block_hash, get_request_block_hasher, init_none_hash  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

from saga_rl.aeg.forest import Forest, build_forest  # noqa: E402
from saga_rl.aeg.trace import Trace  # noqa: E402
from saga_rl.sim.cache import pool as kv  # noqa: E402

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


def resident_blocks(pool: kv.Pool, w: int = 0) -> NDArray[np.int32]:
    """(segments,) leading blocks of each segment that are resident on worker w."""
    ids, segments, mask = pool.meta[kv.IDS], pool.meta[kv.SEGMENTS], pool.meta[kv.MASK]
    assert mask == 0, "small pools have a row for every pair of worker and segment"
    return pool.res[w * ids:w * ids + segments]


def named(resident: NDArray[np.int32]) -> set[Block]:
    """The blocks that `resident_blocks` counts."""
    return {(int(s), k) for s in np.flatnonzero(resident) for k in range(int(resident[s]))}
