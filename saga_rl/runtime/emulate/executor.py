"""vLLM's executor of an emulated device: answers vLLM's questions about it, and waits instead of computing.

A step is timed when vLLM hands it over (`execute_model`), its tokens are chosen when vLLM asks for them
(`sample_tokens`, so that a grammar is honoured), and they are there when the device would be done: waiting for the
future is what waiting for a GPU is. No thread and no timer of its own. Tried with vLLM 0.28 - 0.33.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from vllm.v1.executor.abstract import Executor
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from saga_rl.runtime.config.emulated import active
from saga_rl.runtime.emulate import kv_spec
from saga_rl.runtime.emulate.answers import Answer, allowed
from saga_rl.runtime.emulate.device import Device
from saga_rl.runtime.emulate.offload import Copies
from saga_rl.runtime.emulate.platform import runner_as_on_cuda
from saga_rl.runtime.emulate.running import Running, Step

LAYOUTS = ["LBHNC", "LBNHC", "BLHNC", "BLNHC"]


class Done(Future):
    """A result that is there at real time `when`; `finish` makes it. `result()` waits as it would for a GPU."""

    def __init__(self, when: float, wait: Callable[[float], None], finish: Callable[[], Any]) -> None:
        super().__init__()
        self._when, self._wait, self._finish = when, wait, finish

    def done(self) -> bool:
        return super().done() or time.monotonic() >= self._when

    def result(self, timeout: float | None = None) -> Any:
        if not super().done():
            if timeout is not None and time.monotonic() + timeout < self._when:
                time.sleep(timeout)
                raise TimeoutError
            self._wait(self._when)
            self.set_result(self._finish())
        return super().result()


class EmulatedExecutor(Executor):
    """One device an engine, whatever its number of GPUs."""

    def _init_executor(self) -> None:
        settings = active()
        if settings is None:
            raise RuntimeError("the emulated executor was started without SAGA_RL_EMULATE")
        runner_as_on_cuda()
        self.settings = settings
        self.device = Device(settings.cost, settings.time_scale)
        self._vocab = self.model_config.get_vocab_size()
        self._eos = _eos(self.model_config)
        self._engine = int(getattr(self.parallel_config, "data_parallel_index", 0) or 0)
        self._tokenizer: Any = None
        self._running = Running(self._new_answer)
        self._steps: deque[tuple[Step, float, Any]] = deque()
        """Handed over and not sampled yet: the step, when it is done, what the connector said."""
        self._loras: set[int] = set()
        self._copies: Copies | None = None
        self._empty = ModelRunnerOutput(req_ids=[], req_id_to_index={})
        from vllm.platforms import current_platform

        current_platform.update_block_size_for_backend(self.vllm_config)

    def _new_answer(self, prompt: list[int], params: Any) -> Answer:
        return Answer(prompt, params, self._vocab, self._eos, self._encode)

    def _encode(self, text: str) -> list[int]:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.model_config.tokenizer)
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    # ------------------------------------------------------------------ a step
    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        moved = None if self._copies is None else self._copies.step(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens == 0:
            self._running.read(scheduler_output)
            out = self._empty if moved is None else ModelRunnerOutput(req_ids=[], req_id_to_index={},
                                                                      kv_connector_output=moved)
            return _ready(out) if non_block else out
        step = self._running.read(scheduler_output)
        for fault in self._running.faults(step):
            if fault.engine in (None, self._engine):
                self.device.faults.happen(fault)
        self._steps.append((step, self.device.submit(step.batch), moved))
        return _ready(None) if non_block else None

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        step, when, moved = self._steps.popleft()
        masks = _masks(grammar_output)
        tokens: list[list[int]] = []
        for name, at in zip(step.names, step.samples, strict=True):
            if at < 0:
                tokens.append([])
                continue
            token = self._running.answer(name).token(at)
            tokens.append([allowed(token, masks[name]) if name in masks else token])
        output = ModelRunnerOutput(
            req_ids=step.names, req_id_to_index={name: i for i, name in enumerate(step.names)},
            sampled_token_ids=tokens, logprobs=self._logprobs(step.names, tokens), kv_connector_output=moved)
        future = Done(when, self.device.wait_until, lambda: output)
        return future if non_block else future.result()

    def _logprobs(self, names: list[str], tokens: list[list[int]]) -> LogprobsLists | None:
        """Log-probability 0 for each chosen token, where a request asks for any: a device that is sure of itself."""
        most = max((getattr(self._running.params(name), "logprobs", None) or 0 for name in names), default=0)
        if not most and not any(getattr(self._running.params(n), "logprobs", None) == 0 for n in names):
            return None
        ids = np.zeros((len(names), most + 1), np.int32)
        for i, token in enumerate(tokens):
            ids[i] = (np.arange(most + 1) + (token[0] if token else 0)) % self._vocab
        logprobs = np.where(np.arange(most + 1) == 0, 0.0, -30.0) * np.ones((len(names), 1))
        return LogprobsLists(ids, logprobs.astype(np.float32), np.zeros(len(names), np.int64))

    # ------------------------------------------------------------------ what vLLM asks
    def collective_rpc(self, method: Any, timeout: float | None = None, args: tuple = (),
                       kwargs: dict | None = None, non_block: bool = False, **more: Any) -> Any:
        """The answer of the one worker. What changes nothing on a device without weights is answered with None."""
        if callable(method):
            raise NotImplementedError("an emulated device has no worker to run a function on")
        answer = getattr(self, f"_on_{method}", None)
        out = [answer(*args, **(kwargs or {})) if answer is not None else None]
        return _ready(out) if non_block else out

    def _on_get_kv_cache_spec(self) -> dict[str, Any]:
        return kv_spec.specs(self.vllm_config)

    def _on_get_supported_kv_cache_layouts(self) -> list[str]:
        return list(LAYOUTS)

    def _on_set_kv_cache_layout(self, name: str, *more: Any) -> None:
        self.cache_config.kv_cache_layout = name

    def _on_determine_available_memory(self) -> int:
        return kv_spec.pool_bytes(self.vllm_config, self.settings)

    def _on_initialize_from_config(self, configs: list[Any]) -> None:
        self._copies = Copies.of(self.vllm_config, configs[0], self.settings)

    def _on_update_max_model_len(self, length: int) -> None:
        self.model_config.max_model_len = length

    def _on_compile_or_warm_up_model(self) -> Any:
        try:
            from vllm.v1.worker.worker_base import CompilationTimes
        except ImportError:  # vLLM 0.28 has it as a plain number
            return 0.0
        return CompilationTimes(language_model=0.0, encoder=0.0)

    def _on_get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def _on_supports_draft_weight_updates(self) -> bool:
        return False

    def _on_add_lora(self, request: Any) -> bool:
        self._loras.add(int(request.lora_int_id))
        return True

    def _on_remove_lora(self, number: int) -> bool:
        known = number in self._loras
        self._loras.discard(number)
        return known

    def _on_pin_lora(self, number: int) -> bool:
        return number in self._loras

    def _on_list_loras(self) -> set[int]:
        return set(self._loras)

    def check_health(self) -> None:
        """A device that hangs still says that it is well, as a GPU does."""

    def shutdown(self) -> None:
        copies = getattr(self, "_copies", None)
        if copies is not None:
            copies.shutdown()

    def init_kv_output_aggregator(self, connector: Any) -> None:
        """There is one worker, and nothing to aggregate."""

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """As CUDA's executors do."""
        return True


def _ready(value: Any) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


def _masks(grammar: Any) -> dict[str, Any]:
    """Bit masks of a step's requests under a grammar, by name."""
    if grammar is None:
        return {}
    names = grammar.structured_output_request_ids
    return {name: grammar.grammar_bitmask[i] for i, name in enumerate(names)}


def _eos(model_config: Any) -> int | None:
    """The token that ends an answer, as the model's configuration has it."""
    config = model_config.hf_text_config
    eos = getattr(config, "eos_token_id", None)
    with contextlib.suppress(OSError, ValueError):  # a folder without a generation config
        eos = (model_config.try_get_generation_config() or {}).get("eos_token_id", eos)
    return int(eos[0]) if isinstance(eos, list | tuple) and eos else eos if isinstance(eos, int) else None
