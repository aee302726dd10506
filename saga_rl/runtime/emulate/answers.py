"""Which tokens an emulated device answers with: those that a request prescribes, else filler, always the same.

`vllm_xargs: {"saga_answer_ids": [token ids]}` or `{"saga_answer": "text"}` prescribe an answer. After its last token
comes the model's end-of-sequence token, unless the request ignores that: then filler goes on. An answer without a
prescription is filler until `max_tokens`. A grammar that vLLM puts on a request rules over both: where it forbids the
token, the first allowed one is taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga_rl.runtime.emulate.faults import FIELD as FAULT
from saga_rl.runtime.emulate.faults import Fault, parse

IDS, TEXT = "saga_answer_ids", "saga_answer"
FIRST_FILLER, FILLERS = 300, 200
"""Filler: ordinary tokens in byte-level and sentencepiece vocabularies alike, as `replay_text` has them."""
_MARK = 64
"""Prompt tokens that name an answer's filler, from its end."""


class Answer:
    """The answer of one request. vocab: size of the vocabulary; encode: text to token ids."""

    __slots__ = ("_end", "_given", "_key", "_vocab", "fault")

    def __init__(self, prompt: Sequence[int], params: Any, vocab: int, eos: int | None,
                 encode: Callable[[str], list[int]]) -> None:
        extra = (getattr(params, "extra_args", None) or {}) if params is not None else {}
        ignores = bool(getattr(params, "ignore_eos", False))
        self._vocab = vocab
        self._given = _prescribed(extra, vocab, encode)
        self._end = None if ignores or self._given is None else eos
        tail = np.asarray(prompt[-_MARK:], np.int64)
        self._key = zlib.crc32(tail.tobytes(), len(prompt))
        self.fault = _fault(extra)

    def token(self, at: int) -> int:
        """The token at place `at`, 0 = the first."""
        if self._given is not None and at < len(self._given):
            return self._given[at]
        if self._end is not None:
            return self._end
        return (FIRST_FILLER + (self._key + 7919 * at) % FILLERS) % self._vocab


def _prescribed(extra: dict[str, Any], vocab: int, encode: Callable[[str], list[int]]) -> list[int] | None:
    """The prescribed ids; None where there are none, or none that can be read: a device never fails for a request."""
    try:
        if IDS in extra:
            ids = [int(x) for x in extra[IDS]]
        elif TEXT in extra:
            ids = encode(str(extra[TEXT]))
        else:
            return None
    except (TypeError, ValueError, OverflowError):  # also what JSON's Infinity becomes
        return None
    return ids if all(0 <= x < vocab for x in ids) else None


def _fault(extra: dict[str, Any]) -> Fault | None:
    try:
        return parse(str(extra[FAULT])) if FAULT in extra else None
    except ValueError:
        return None


def allowed(token: int, mask: NDArray[np.int32]) -> int:
    """`token`, or the first token that the grammar's bit mask allows if it forbids that one."""
    words = mask.view(np.uint32)
    if words[token >> 5] >> np.uint32(token & 31) & np.uint32(1):
        return token
    word = int(np.flatnonzero(words)[0]) if words.any() else 0
    bits = int(words[word])
    return (word << 5) + ((bits & -bits).bit_length() - 1) if bits else token
