"""What an emulated device knows of the requests that run on it, kept from vLLM's scheduler output alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saga_rl.runtime.emulate.answers import Answer
from saga_rl.runtime.emulate.batch import Batch
from saga_rl.runtime.emulate.faults import Fault


class _Request:
    __slots__ = ("answer", "generated", "params", "prompt", "target")

    def __init__(self, answer: Answer, prompt: int, generated: int, params: Any) -> None:
        self.answer, self.prompt, self.generated, self.params = answer, prompt, generated, params
        self.target = prompt + generated
        """Tokens that are computed as a prompt: those known when it was (re)started."""


class Step:
    """One step's requests in vLLM's order, and those of them that get a token at its end."""

    __slots__ = ("batch", "names", "samples")

    def __init__(self) -> None:
        self.batch = Batch()
        self.names: list[str] = []
        self.samples: list[int] = []
        """For each name: which token of its answer comes, -1 = none (a part of a prompt)."""


class Running:
    """The requests of one engine. answer: makes the `Answer` of (prompt ids, sampling parameters)."""

    def __init__(self, answer: Callable[[list[int], Any], Answer]) -> None:
        self._answer = answer
        self._requests: dict[str, _Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def params(self, name: str) -> Any:
        """Sampling parameters of a request that runs."""
        return self._requests[name].params

    def answer(self, name: str) -> Answer:
        return self._requests[name].answer

    def read(self, out: Any) -> Step:
        """Read one `SchedulerOutput`."""
        for name in out.finished_req_ids:
            self._requests.pop(name, None)
        computed: dict[str, int] = {}
        for new in out.scheduled_new_reqs:
            self._begin(new)
            computed[new.req_id] = new.num_computed_tokens
        cached = out.scheduled_cached_reqs
        for name, tokens, generated in zip(cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens,
                                           strict=True):
            if name in cached.resumed_req_ids:
                request = self._requests[name]
                request.generated = generated
                request.target = request.prompt + generated
            computed[name] = tokens
        step = Step()
        for name, tokens in out.num_scheduled_tokens.items():
            request, before = self._requests[name], computed[name]
            if before < request.target:
                step.batch.chunk(tokens, before)
            else:
                step.batch.decode(before)
            step.names.append(name)
            if before + tokens >= request.prompt + request.generated:
                step.samples.append(request.generated)
                request.generated += 1
            else:
                step.samples.append(-1)
        return step

    def _begin(self, new: Any) -> None:
        prompt = list(new.prompt_token_ids or ())
        length = new.prompt_len if hasattr(new, "prompt_len") else len(prompt)
        known = getattr(new, "prefill_token_ids", None)
        before = self._requests.get(new.req_id)
        generated = max(len(known) - length, 0) if known is not None else 0 if before is None else before.generated
        answer = self._answer(prompt, new.sampling_params) if before is None else before.answer
        self._requests[new.req_id] = _Request(answer, length, generated, new.sampling_params)

    def faults(self, step: Step) -> list[Fault]:
        """Faults that the tokens of this step bring about."""
        out = []
        for name, at in zip(step.names, step.samples, strict=True):
            fault = self._requests[name].answer.fault
            if fault is not None and fault.token == at + 1:
                out.append(fault)
        return out
