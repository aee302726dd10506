"""Prompts for a trace: token ids that share exactly what the trace says they share.

A trace has lengths and prefix structure, not words. Every piece of text here is a pseudo-random stream of token ids,
named by what it stands for (a shared prefix, a hashed block, a step's own new tokens), so equal names give equal ids in
every run and a server's prefix cache finds what the original server's would have. A step's context is its prompt
followed by the tokens that the server really answered, as an agent's is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga_rl.aeg.trace import Trace

FIRST_ID, N_IDS = 300, 200
"""Ids 300 to 499 are ordinary tokens in byte-level and sentencepiece vocabularies alike: no control token, no byte."""

Tokens = NDArray[np.int32]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _ids(keys: NDArray[np.uint64], positions: NDArray[np.integer]) -> Tokens:
    x = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (FIRST_ID + (_mix(x) >> np.uint64(33)) % np.uint64(N_IDS)).astype(np.int32)


def _key(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


@dataclass
class _Context:
    """A step's prompt and output, and the chained keys of its full blocks."""

    tokens: Tokens
    chain: list[int]


class PromptBook:
    """Builds every step's prompt, remembers contexts that later steps continue, and counts tokens never seen before.

    `salt` separates users: two books with different salts share no block. `block_tokens` is the server's block size: a
    prefix cache can only hold whole blocks, so the rest of a block is first-time work for every step.
    """

    def __init__(self, trace: Trace, salt: str = "", block_tokens: int = 16) -> None:
        self.trace, self.salt, self.block = trace, salt, block_tokens
        self.seen: set[int] = set()
        self._contexts: dict[tuple[int, int], _Context] = {}
        self._readers: dict[tuple[int, int], int] = {}
        self._hash_salt = np.uint64(_key(salt, "block"))
        st = trace.steps
        for s in range(trace.n_sessions):
            for ref in st.prefix_step[trace.session_offsets[s]:trace.session_offsets[s + 1]]:
                if ref >= 0:
                    self._readers[s, int(ref)] = self._readers.get((s, int(ref)), 0) + 1

    def prompt(self, session: int, step: int) -> tuple[Tokens, int]:
        """(prompt_tokens,) int32 ids of step `step` of `session`, and how many of them no cache could hold yet.

        The step that the prompt continues must have been given to `finish` before.
        """
        st, row = self.trace.steps, int(self.trace.session_offsets[session]) + step
        n, ref, shared = int(st.prompt_tokens[row]), int(st.prefix_step[row]), int(st.shared_prefix[row])
        k, chain = int(st.prefix_tokens[row]), []
        if ref >= 0:
            base = self._contexts[session, ref]
            head, chain = base.tokens[:k], base.chain[:k // self.block]
            self._release(session, ref)
        elif shared >= 0:
            head = self._stream(("shared", self.trace.shared_prefixes[shared]), k)
        else:
            head = np.zeros(0, np.int32)
        tokens = np.concatenate([head, self._new_text(session, step, row, n - len(head))])
        chain = self._extend(chain, tokens, n)
        reusable = 0
        while reusable < (n - 1) // self.block and chain[reusable] in self.seen:
            reusable += 1
        self.seen.update(chain)
        self._contexts[session, step] = _Context(tokens, chain)
        return tokens, n - reusable * self.block

    def finish(self, session: int, step: int, output: Sequence[int] | None) -> bool:
        """Append what the server answered (None or too few ids: deterministic filler takes their place).

        False when filler was needed.
        """
        row = int(self.trace.session_offsets[session]) + step
        n = int(self.trace.steps.output_tokens[row])
        given = np.asarray(output if output is not None else [], dtype=np.int32)[:n]
        filler = self._stream(("answer", self.trace.sessions.session_id[session], step), n)
        answer = np.concatenate([given, filler[len(given):]])
        ctx = self._contexts[session, step]
        ctx.tokens = np.concatenate([ctx.tokens, answer])
        # The KV of the last sampled token is never computed, so it cannot be in any cache.
        ctx.chain = self._extend(ctx.chain, ctx.tokens, len(ctx.tokens) - 1)
        self.seen.update(ctx.chain)
        ctx.chain = self._extend(ctx.chain, ctx.tokens, len(ctx.tokens))
        if not self._readers.get((session, step)):
            del self._contexts[session, step]
        return len(given) == n

    def forget(self, session: int) -> None:
        """Drop what is left of a session that has ended, also one that failed half-way."""
        for key in [k for k in self._contexts if k[0] == session]:
            del self._contexts[key]

    def _release(self, session: int, ref: int) -> None:
        self._readers[session, ref] -= 1
        if not self._readers[session, ref]:
            del self._contexts[session, ref]

    def _stream(self, name: tuple[object, ...], n: int) -> Tokens:
        return _ids(np.full(n, _key(self.salt, *name), np.uint64), np.arange(n))

    def _new_text(self, session: int, step: int, row: int, n: int) -> Tokens:
        st, b = self.trace.steps, self.trace.meta.hash_block_tokens
        own = self._stream(("own", self.trace.sessions.session_id[session], step), n)
        hashes = st.hashes[st.hash_offsets[row]:st.hash_offsets[row + 1]]
        if b and len(hashes):
            keys = _mix(hashes.astype(np.uint64) ^ self._hash_salt)
            known = min(n, len(hashes) * b)
            own[:known] = _ids(np.repeat(keys, b)[:known], np.arange(known) % b)
        return own

    def _extend(self, chain: list[int], tokens: Tokens, upto: int) -> list[int]:
        out, b = list(chain), self.block
        for i in range(len(out), upto // b):
            out.append(hash((out[-1] if out else 0, tokens[i * b:(i + 1) * b].tobytes())))
        return out
