"""Since when each engine has said nothing: how an engine that hangs is told from one that has nothing to say."""

from __future__ import annotations


class Silence:
    """Seconds of silence by engine, as far as somebody listened: time in which the listener itself stood still (a stall
    of its event loop, a machine that was suspended) does not count."""

    def __init__(self, engines: int) -> None:
        self.seconds = [0.0] * engines
        self.orders = [0] * engines
        """Orders of vLLM's own that an engine has not answered; they may take as long as they like."""

    def heard(self, w: int) -> None:
        """Engine w said something."""
        self.seconds[w] = 0.0

    def hung(self, owing: set[int], after_s: float, looked_s: float) -> list[int]:
        """The engines of `owing` that have been silent for `after_s`, once each. looked_s: since the last call, and of
        it counts only as much as a listener that was never held up would have let pass."""
        out = []
        for w in range(len(self.seconds)):
            if w not in owing or self.orders[w]:
                self.seconds[w] = 0.0
                continue
            before, self.seconds[w] = self.seconds[w], self.seconds[w] + looked_s
            if before < after_s <= self.seconds[w]:
                out.append(w)
        return out
