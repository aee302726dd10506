"""Which content each KV block of a trace holds, as block hashes, without a token: blocks are equal where the forest
(`aeg.forest`) says that they are. Hashing a prompt of 100,000 tokens is so a matter of numbering 6,000 places."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_rl.aeg.forest import build_forest
from saga_rl.aeg.trace import Trace

WIDTH = 8
"""Bytes of a name."""


class Content:
    """The names of the blocks of each step's context."""

    def __init__(self, trace: Trace, block: int) -> None:
        self.block = block
        self._forest = f = build_forest(trace, block)
        self._base = np.concatenate([[0], np.cumsum(f.seg_blocks.astype(np.int64))])
        self._nameless = int(self._base[-1])

    def names(self, step: int) -> list[bytes]:
        """Of the full blocks of the step's prompt and answer that are ever computed."""
        f = self._forest
        path = f.path[f.path_offsets[step]:f.path_offsets[step + 1]]
        places = [np.arange(self._base[s], self._base[s + 1]) for s in path]
        ids = np.concatenate(places)[:int(f.context_blocks[step])] if places else np.zeros(0, np.int64)
        text = ids.astype(">i8").tobytes()
        return [text[i:i + WIDTH] for i in range(0, len(text), WIDTH)]

    def hasher(self, step: int) -> Any:
        """What vLLM calls for the hashes of a request's blocks that are full and not named yet."""
        names = self.names(step)

        def more(request: Any) -> list[bytes]:
            have, full = len(request.block_hashes), request.num_tokens // self.block
            while len(names) < full:  # the answer's last token fills a block, which nobody computes
                names.append(self._nameless.to_bytes(WIDTH, "big"))
                self._nameless += 1
            return names[have:full]

        return more
