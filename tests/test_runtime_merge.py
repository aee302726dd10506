"""Which steps of a recording are one session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from test_runtime_recorder import BLOCK, hashes, served

from saga_rl.runtime.recording.merge import merge
from saga_rl.runtime.recording.recorder import Recorder, journal_folder


def test_after_an_announced_end_a_name_begins_anew(tmp_path: Path) -> None:
    """One trace replayed twice on one server is two recordings of each session, not one of twice the length."""
    record = tmp_path / "served.parquet"
    r = Recorder(record, 0, "k", BLOCK, 0.0)
    for k in range(2):
        at = 100.0 * k
        r.finished(served("s", at, 2 * BLOCK, 1), at + 1, 4, hashes(1, 2))
        r.finished(served("s", at + 2, BLOCK, 2, agent=1, final=True), at + 3, 4, hashes(9))
        r.finished(served("s", at + 4, 3 * BLOCK, 3, final=True), at + 5, 4, hashes(1, 2, 3))
        r.finished(served("s", at + 5.5, BLOCK, 4, agent=2), at + 6, 4, hashes(8))  # a sub-agent that outlives it
    r.close()
    t = merge(journal_folder(record), record)
    assert list(t.sessions.session_id) == ["s", "s#2"]
    assert [int(n) for n in np.bincount(t.steps.session)] == [4, 4]
    assert np.diff(t.sessions.arrival_s).tolist() == [100.0]


def test_a_sub_agents_caller_is_its_parent_and_waits_for_it(tmp_path: Path) -> None:
    """Agent 2 was called by agent 1 while the main agent's answer came later: without being told, it would seem to be
    the main agent's."""
    record = tmp_path / "served.parquet"
    r = Recorder(record, 0, "k", BLOCK, 0.0)
    rows = [(0, -1, 0.0, 1.0), (1, 0, 2.0, 3.0), (0, -1, 2.5, 3.5), (2, 1, 4.0, 5.0), (1, -1, 6.0, 7.0),
            (0, -1, 8.0, 9.0)]
    for n, (agent, caller, start, end) in enumerate(rows, 1):
        r.finished(served("s", start, BLOCK, n, agent=agent, caller=caller), end, 4, hashes(10 * agent, n))
    r.close()
    t = merge(journal_folder(record), record).steps
    parents = [t.parents[a:b].tolist() for a, b in zip(t.parent_offsets, t.parent_offsets[1:], strict=False)]
    assert parents == [[], [0], [0], [1], [1, 3], [2, 4]]
