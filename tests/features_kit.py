"""vLLM's features as a scheduler in one process meets them: how each is configured, asked for, stepped and checked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import runtime_kit
from runtime_kit import BLOCK, make_config, make_request, step, vllm

from saga_rl.runtime.engine.scheduler import SagaScheduler, SagaSyncScheduler

assert vllm is not None
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402

if not hasattr(Scheduler, "_holds_kv_blocks"):
    pytest.skip("these scenes are written for vLLM 0.32 and later", allow_module_level=True)

import torch  # noqa: E402
from vllm import PoolingParams  # noqa: E402
from vllm.config import KVTransferConfig, LoRAConfig, ParallelConfig, SpeculativeConfig  # noqa: E402
from vllm.config.kv_events import KVEventsConfig  # noqa: E402
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored  # noqa: E402
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange  # noqa: E402
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_block_hash, maybe_convert_block_hash  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec  # noqa: E402
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402

IMAGE = 24
"""Tokens of an image."""
FULL = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
SLIDING = SlidingWindowSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=64)
STATE = MambaSpec(shapes=((2 * BLOCK,),), dtypes=(torch.float32,), block_size=BLOCK, mamba_cache_mode="align")


@dataclass
class Play:
    """One run: a scheduler, what was asked of it and what has ended."""

    s: Any
    rng: random.Random = field(default_factory=lambda: random.Random(3))
    asked: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)


def remade(r: Request, **changes: Any) -> Request:
    """The request with other arguments of vLLM's."""
    return Request(**{"request_id": r.request_id, "prompt_token_ids": list(r.prompt_token_ids or ()),
                      "sampling_params": r.sampling_params, "pooling_params": None, "session_id": r.session_id,
                      "block_hasher": runtime_kit._HASHER, **changes})


def plain(play: Play, name: str, tokens: list[int], session: str, **how: Any) -> list[Request]:
    return [make_request(name, tokens, session=session, output=play.rng.randrange(1, 12), **how)]


def plain_step(play: Play) -> list[str]:
    return step(play.s)


@dataclass(frozen=True)
class Feature:
    """config: what `make_scheduler` is told; ready: changes the scheduler; ask: the requests of one call of a session;
    step: one iteration; check: at the end; cls: the scheduler's class; pressure: KV is evicted."""

    config: Callable[[Path], dict[str, Any]] = lambda folder: {}
    ready: Callable[[Play], None] = lambda play: None
    ask: Callable[..., list[Request]] = plain
    step: Callable[[Play], list[str]] = plain_step
    check: Callable[[Play], None] = lambda play: None
    cls: type = SagaScheduler
    pressure: bool = True


# ---------------------------------------------------------------------- adapters, grammars, drafts
def with_adapter(play: Play, name: str, tokens: list[int], session: str) -> list[Request]:
    return plain(play, name, tokens, session, adapter=1 + int(session[1:]) % 3)


class Grammar:
    """A grammar that is compiled by the time it was asked for thrice, and accepts everything."""

    reasoning_ended = True
    reasoner = None

    def __init__(self) -> None:
        self.asked = 0

    @property
    def grammar(self) -> Any:
        self.asked += 1
        return self if self.asked > 3 else None

    is_grammar_ready = True

    def accept_tokens(self, name: str, tokens: list[int]) -> bool:
        return True

    def is_terminated(self) -> bool:
        return False


def with_grammar(play: Play, name: str, tokens: list[int], session: str) -> list[Request]:
    (r,) = plain(play, name, tokens, session)
    if play.rng.random() < 0.5:
        r.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        r.structured_output_request = Grammar()
    return [r]


def drafts(folder: Path) -> dict[str, Any]:
    return {"speculative_config": SpeculativeConfig(
        method="ngram", num_speculative_tokens=3, prompt_lookup_max=4, prompt_lookup_min=2,
        target_model_config=make_config(folder).model_config, target_parallel_config=ParallelConfig())}


def step_with_drafts(play: Play) -> list[str]:
    """Some drafts are accepted, some not."""
    s, rng = play.s, play.rng
    out = s.schedule()
    ids, sampled = list(out.num_scheduled_tokens), []
    for rid in ids:
        drafted = len(out.scheduled_spec_decode_tokens.get(rid, ()))
        ready = s.requests[rid].num_computed_tokens >= s.requests[rid].num_tokens
        sampled.append([7] * (1 + rng.randint(0, drafted)) if ready else [])
    before = set(s.requests)
    s.update_from_output(out, model_said(ids, sampled))
    s.update_draft_token_ids(DraftTokenIds([r.request_id for r in s.running], [[7] * 3 for _ in s.running]))
    return sorted(before - set(s.requests))


def model_said(ids: list[str], sampled: list[list[int]], pooled: list[Any] | None = None) -> ModelRunnerOutput:
    return ModelRunnerOutput(req_ids=ids, req_id_to_index={r: i for i, r in enumerate(ids)}, sampled_token_ids=sampled,
                             logprobs=None, prompt_logprobs_dict={}, pooler_output=pooled or [])


# ---------------------------------------------------------------------- images, embeddings
def see_images(play: Play) -> None:
    """Let the scheduler of a text model take images."""
    play.s.max_num_encoder_input_tokens = 3 * IMAGE
    play.s.encoder_cache_manager = EncoderCacheManager(cache_size=4 * IMAGE)


def with_image(play: Play, name: str, tokens: list[int], session: str) -> list[Request]:
    """Two sessions say the same words about different images."""
    (r,) = plain(play, name, [5] * IMAGE + tokens, session)
    image = MultiModalFeatureSpec(None, "image", f"image-{session}", PlaceholderRange(0, IMAGE), f"image-{session}")
    return [remade(r, mm_features=[image])]


def with_pooling(play: Play, name: str, tokens: list[int], session: str) -> list[Request]:
    return [remade(make_request(name, tokens, session=session), sampling_params=None,
                   pooling_params=PoolingParams(task="embed"))]


def step_with_pooling(play: Play) -> list[str]:
    s = play.s
    out = s.schedule()
    ids = list(out.num_scheduled_tokens)
    pooled = [torch.zeros(2) if (r := s.requests[i]).num_computed_tokens >= r.num_tokens else None for i in ids]
    before = set(s.requests)
    s.update_from_output(out, model_said(ids, [], pooled))
    return sorted(before - set(s.requests))


# ---------------------------------------------------------------------- several answers, connectors, events
def with_branches(play: Play, name: str, tokens: list[int], session: str) -> list[Request]:
    """What n = 3 becomes in vLLM: three requests of one prompt."""
    return [r for k in range(3) for r in plain(play, f"{k}_{name}", tokens, session)]


def with_beams(play: Play, name: str, tokens: list[int], session: str) -> list[Request]:
    """One round of a beam search: a token for each beam, which differ at their ends."""
    return [make_request(f"{name}-beam-{k}", [*tokens, *[50 + k] * (1 + k)], session=session, output=1)
            for k in range(4)]


def connector(folder: Path) -> dict[str, Any]:
    return {"kv_transfer_config": KVTransferConfig(
        kv_connector="PlayedConnector", kv_connector_module_path="played_connector", kv_role="kv_both",
        kv_load_failure_policy="recompute")}


def with_transfer(play: Play, name: str, tokens: list[int], session: str) -> list[Request]:
    """A part of the prompt comes from another engine; some blocks are sent on to one."""
    c = play.s.connector
    c.has[name] = play.rng.choice([0, 0, len(tokens) // 2, len(tokens)]) // BLOCK * BLOCK
    if play.rng.random() < 0.3:
        c.keeps.add(name)
    return plain(play, name, tokens, session)


def step_with_transfer(play: Play) -> list[str]:
    """Loads come, and blocks are sent, one step after they could be. One load of four fails at its end."""
    s, c = play.s, play.s.connector
    landed, c.loading = c.loading, {}
    sent = {name for name in c.keeps if name in s.requests and s.requests[name].is_finished()}
    failed = {blocks[-1] for blocks in landed.values() if play.rng.random() < 0.25}
    return step(s, kv_connector_output=KVConnectorOutput(finished_recving=set(landed) or None,
                                                         finished_sending=sent or None, invalid_block_ids=failed))


def kv_events(folder: Path) -> dict[str, Any]:
    return {"kv_events_config": KVEventsConfig(enable_kv_cache_events=True, publisher="null")}


class Consumer:
    """In the place of vLLM's publisher: adds up what it is told."""

    def __init__(self, manager: Any) -> None:
        self.manager, self.told = manager, 0
        self.blocks: Counter[Any] = Counter()

    def publish(self, batch: Any) -> None:
        for event in batch.events:
            self.told += 1
            if isinstance(event, BlockStored):
                self.blocks.update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                self.blocks.subtract(event.block_hashes)
            elif isinstance(event, AllBlocksCleared):
                self.blocks.clear()
        assert +self.blocks == Counter(maybe_convert_block_hash(get_block_hash(b.block_hash))
                                       for b in self.manager.block_pool.blocks if b.block_hash is not None)

    def shutdown(self) -> None: ...


def consume(play: Play) -> None:
    play.s.kv_event_publisher = Consumer(play.s.kv_cache_manager)


def step_with_resets(play: Play) -> list[str]:
    done = step(play.s)
    if play.rng.random() < 0.05:
        play.s.reset_prefix_cache()
    return done


def much_was_told(play: Play) -> None:
    assert play.s.kv_event_publisher.told > 50


# ---------------------------------------------------------------------- limits
def set_cache(**fields: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"change": lambda config: [setattr(config.cache_config, k, v) for k, v in fields.items()]}


def set_limits(**fields: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"change": lambda config: [setattr(config.scheduler_config, k, v)
                                                     for k, v in fields.items()]}


def step_with_few(play: Play) -> list[str]:
    done = step(play.s)
    assert len(play.s.running) <= 3
    return done


def nothing_is_kept(play: Play) -> None:
    assert play.s.block_queue.n_evictable == 0 and not play.s.block_queue.evicted


FEATURES = {
    "plain": Feature(),
    "synchronous": Feature(cls=SagaSyncScheduler),
    "LoRA": Feature(lambda folder: {"lora_config": LoRAConfig(max_loras=1, max_lora_rank=8, max_cpu_loras=4)},
                    ask=with_adapter),
    "structured output": Feature(ask=with_grammar),
    "speculation": Feature(drafts, step=step_with_drafts, cls=SagaSyncScheduler),
    "sliding window": Feature(lambda folder: {"specs": (FULL, SLIDING), "blocks": 110}),
    "Mamba": Feature(lambda folder: {"specs": (FULL, STATE), "blocks": 90,
                                     **set_cache(mamba_cache_mode="align")(folder)}),
    "images": Feature(ready=see_images, ask=with_image),
    "KV transfer": Feature(connector, ask=with_transfer, step=step_with_transfer),
    "KV events": Feature(kv_events, ready=consume, step=step_with_resets, check=much_was_told),
    "n above 1": Feature(ask=with_branches),
    "beam search": Feature(ask=with_beams),
    "embeddings": Feature(ask=with_pooling, step=step_with_pooling),
    "no KV cache": Feature(lambda folder: {"specs": (), "blocks": 1, **set_cache(enable_prefix_caching=False)(folder)},
                           ask=with_pooling, step=step_with_pooling, check=nothing_is_kept, pressure=False),
    "no prefix caching": Feature(set_cache(enable_prefix_caching=False), check=nothing_is_kept, pressure=False),
    "max-num-active-seqs": Feature(set_limits(max_num_active_seqs=3), step=step_with_few),
    "no chunked prefill": Feature(lambda folder: {"batched": 1024, **set_limits(enable_chunked_prefill=False)(folder)}),
}
