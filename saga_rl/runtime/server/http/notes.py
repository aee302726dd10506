"""Notes to the engines after answers: collected, sent by one task, never waited for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

MOST_WAITING = 10_000
MOST_AT_ONCE = 256


class Notes:
    """send: takes a list of notes {"session", "agent", "next_tool", "final"}."""

    def __init__(self, send: Callable[[list[dict[str, Any]]], Awaitable[Any]], counts: Counter[str]) -> None:
        self._send, self.counts = send, counts
        self._waiting: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None

    def post(self, note: dict[str, Any]) -> None:
        """Returns at once."""
        if len(self._waiting) >= MOST_WAITING:
            self.counts["notes dropped"] += 1
            return
        self._waiting.append(note)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._waiting:
            now, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            try:
                await self._send(now)
                self.counts["notes sent"] += len(now)
            except Exception:
                self.counts["notes failed"] += len(now)
