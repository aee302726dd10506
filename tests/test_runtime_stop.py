"""Servers that are told to stop while answers are on their way: in time, with the recording written."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_kit import ENDLESS, Server, until

from saga_rl.aeg.io import read_trace
from saga_rl.runtime.engine.commands import DRAIN_SHARE, end_in_time
from saga_rl.runtime.launch.flags import DRAIN_S, defaults
from saga_rl.runtime.recording.recorder import journal_folder


def streaming(server: Server, count: int = 2) -> list[threading.Thread]:
    """Answers without an end, each on its way."""
    begun = []

    def one(k: int) -> None:
        body = {"model": "tiny", "prompt": f"an endless answer {k} " * 20, "max_tokens": ENDLESS, "ignore_eos": True,
                "stream": True, "session_id": f"endless-{k}"}
        try:
            with server.http.stream("POST", "/v1/completions", json=body) as r:
                for _ in r.iter_bytes():
                    begun.append(k)
        except Exception:
            return  # the server went away

    threads = [threading.Thread(target=one, args=(k,), daemon=True) for k in range(count)]
    for t in threads:
        t.start()
    until(lambda: len(set(begun)) == count, "both answers have begun")
    return threads


@pytest.mark.emulated
@pytest.mark.timeout(2400)
def test_a_server_under_load_stops_and_writes_its_recording(tmp_path: Path) -> None:
    record = tmp_path / "served.parquet"
    server = Server(tmp_path, "--policy", "likely", "--record", str(record),
                    "--shutdown-timeout", "30",  # a fifth of it is for cutting and writing, on however busy a machine
                    "--statistics", str(tmp_path / "statistics"))
    try:
        server.wait()
        assert server.complete("a prompt that is answered " * 10, session_id="done").status_code == 200
        streaming(server)
        server.process.send_signal(signal.SIGINT)
        code = server.process.wait(120)
    finally:
        server.stop()
    log = server.log.read_text()
    assert code == 0, log[-3000:]
    t = read_trace(record)
    assert t.n_sessions == 1 and t.meta.dropped.get("aborted") == 2, t.meta.dropped
    assert list((tmp_path / "statistics").iterdir())
    said = log.partition("nanobind: leaked")[0].rstrip().splitlines()  # Triton's last words, if it is installed
    last = said[-1].partition(") ")[2] if said[-1].startswith("(APIServer ") else said[-1]  # vLLM's prefix, in some
    assert last.startswith("saga-rl serve: recorded 1 sessions, 1 steps in "), log[-2000:]


@pytest.mark.emulated
@pytest.mark.timeout(2400)
def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    record = tmp_path / "served.parquet"
    server = Server(tmp_path, "--policy", "likely", "--record", str(record), "--shutdown-timeout", "3000")
    try:
        server.wait()
        assert server.complete("a prompt that is answered " * 10, session_id="done").status_code == 200
        until(lambda: any(len(f.read_bytes().splitlines()) > 1 for f in journal_folder(record).glob("*.jsonl")),
              "the step is in the journal, behind its head")
        streaming(server)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(3)  # it waits for answers that take longer
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(120)
    finally:
        server.stop()
    assert read_trace(record).n_steps == 1


# ---------------------------------------------------------------------- the parts
class Engine:
    """As much of vLLM's engine process as is looked at when it stops."""

    def __init__(self, ours: bool, timeout: int) -> None:
        self.shutdown_state = SimpleNamespace(name="SHUTTING_DOWN")
        self.vllm_config = SimpleNamespace(shutdown_timeout=timeout)
        self.scheduler = SimpleNamespace(finish_requests=lambda names, status: ["r"], **({"saga_config": 1} if ours
                                                                                        else {}))
        self.cut: list[Any] = []

    def _handle_shutdown(self) -> bool:
        return True

    def _send_abort_outputs(self, requests: Any) -> None:
        self.cut.append(requests)


@pytest.mark.parametrize("ours", [True, False])
def test_an_engine_ends_its_requests_ahead_of_the_kill(monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    now = [100.0]
    monkeypatch.setattr("saga_rl.runtime.engine.commands.time", SimpleNamespace(monotonic=lambda: now[0]))
    cls = type("Proc", (Engine,), {})
    end_in_time(cls)
    end_in_time(cls)  # once only
    engine = cls(ours, 10)
    for passed, cut in ((0.0, 0), (10 * DRAIN_SHARE - 0.1, 0), (10 * DRAIN_SHARE + 0.1, 1)):
        now[0] = 100.0 + passed
        assert engine._handle_shutdown() is True
        assert len(engine.cut) == (cut if ours else 0)


@pytest.mark.parametrize(("flags", "seconds"), [([], DRAIN_S), (["--shutdown-timeout", "0"], 0),
                                                (["--shutdown-timeout=0"], 0)])
def test_the_users_own_timeout_counts(flags: list[str], seconds: int) -> None:
    args = SimpleNamespace(shutdown_timeout=0)
    defaults(args, flags)
    assert args.shutdown_timeout == seconds


def test_a_stop_is_told_once_and_the_second_signal_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_rl.runtime.server import stopping

    killed: list[str] = []
    children = [SimpleNamespace(kill=lambda: killed.append("engine"))]
    monkeypatch.setattr(stopping.multiprocessing, "active_children", lambda: children)
    server = SimpleNamespace(config=SimpleNamespace(timeout_graceful_shutdown=None), force_exit=False)
    told: list[int] = []
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    try:
        stopping.prepare(server, lambda: told.append(1))
        assert server.config.timeout_graceful_shutdown == stopping.STREAMS_S
        signal.raise_signal(signal.SIGTERM)
        assert (told, killed, server.force_exit) == ([1], [], False)
        signal.raise_signal(signal.SIGINT)
        assert (told, killed, server.force_exit) == ([1], ["engine"], True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_vllms_warning_of_other_schedulers_is_not_of_ours() -> None:
    import logging

    from saga_rl.runtime.launch.plugin import _not_of_ours

    def record(cls: str, text: str = "Using custom scheduler class %s. This scheduler interface is not public") -> Any:
        return logging.LogRecord("vllm.config.scheduler", logging.WARNING, "", 1, text, (cls,), None)

    assert not _not_of_ours(record("saga_rl.runtime.engine.scheduler.SagaScheduler"))
    assert _not_of_ours(record("another.Scheduler")) and _not_of_ours(record("saga_rl.x", "something else of %s"))
