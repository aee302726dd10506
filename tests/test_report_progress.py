"""Progress where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from saga_rl.report.progress import EVERY_S, LoggedProgress


def test_a_log_gets_a_line_every_few_seconds_and_no_more() -> None:
    now = [0.0]
    out = io.StringIO()
    with LoggedProgress(Console(file=out, force_terminal=False, width=40), "failed", clock=lambda: now[0]) as bar:
        steps = bar.add_task("steps", total=1_000, failed="")
        sessions = bar.add_task("sessions", total=None, failed="")
        for _ in range(100):
            now[0] += EVERY_S / 20
            bar.advance(steps)
        bar.update(sessions, failed="2 failed")
        now[0] += EVERY_S
        bar.advance(sessions)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("steps ") and ", sessions" in line]
    assert lines == ["steps 20 of 1,000, sessions 0", "steps 40 of 1,000, sessions 0", "steps 60 of 1,000, sessions 0",
                     "steps 80 of 1,000, sessions 0", "steps 100 of 1,000, sessions 0",
                     "steps 100 of 1,000, sessions 1 (2 failed)"]


def test_a_terminal_keeps_its_bars() -> None:
    out = io.StringIO()
    with LoggedProgress(Console(file=out, force_terminal=True, width=80), clock=lambda: 1e9) as bar:
        bar.advance(bar.add_task("steps", total=10, note=""))
    assert "steps 1 of 10" not in out.getvalue() and "1/10" in out.getvalue()
