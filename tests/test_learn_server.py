"""`saga-rl learn --server URL`: what the server says holds where no flag does, its costs are measured once, and nothing
is written where it does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from live_kit import free_port
from replay_server import FakeServer

from saga_rl.aeg.generators import generate
from saga_rl.aeg.io import write_trace
from saga_rl.cli.main import load
from saga_rl.errors import UserError
from saga_rl.learn.own.server import asked, profile_file, settings_of
from saga_rl.learn.own.settings import Settings
from saga_rl.sim.cost.profile import load_profile


@contextmanager
def served(server: FakeServer) -> Iterator[str]:
    """The server in a thread of its own, since the command has a loop of its own."""
    loop, there, done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    url = ""

    async def run() -> None:
        nonlocal url
        async with server.serve() as url:
            there.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert there.wait(60)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def vllm(**more) -> FakeServer:
    return FakeServer(first_s=0.02, per_token_s=0.002, max_model_len=600, says_block=True, pools=(400, 500), **more)


def test_what_it_says(tmp_path):
    with served(vllm()) as url:
        assert asyncio.run(asked(url, None)) == {"model": "fake", "window": 600, "engines": 2, "kv_tokens": 1600,
                                                 "offloading": ""}


def test_it_is_measured_once_and_flags_go_before_what_it_says(tmp_path):
    server, said = vllm(), list[str]()
    with served(server) as url:
        s = settings_of(Settings(max_num_seqs=4), url, tmp_path / "mine", None, 0, said.append)
        assert (s.workers, s.kv_tokens, s.window) == (2, 1600, 600)
        assert s.profile == str(profile_file(tmp_path / "mine")) and not (tmp_path / "mine").exists()
        measured = len(server.requests)
        assert measured > 20 and {int(r["headers"]["X-data-parallel-rank"]) for r in server.requests} == {0, 1}
        profile = load_profile(s.profile)
        assert profile.kv_tokens == 1600 and profile.provenance["kind"] == "fitted"
        again = settings_of(Settings(max_num_seqs=4, kv_tokens=800, window=500), url, tmp_path / "mine", None, 1,
                            said.append)
        assert (again.workers, again.kv_tokens, again.window, again.profile) == (1, 800, 500, s.profile)
        assert len(server.requests) == measured and "as measured before" in " ".join(said)
    with pytest.raises(UserError, match="profile of another server"):
        settings_of(Settings(), "http://127.0.0.1:9", tmp_path / "mine", None, 0, said.append)


def test_what_memory_below_holds_is_asked_for(tmp_path):
    with served(vllm(offloading="64.0")) as url:
        with pytest.raises(UserError, match=r"keeps KV in 64.0 GiB.*give --cpu-tokens"):
            settings_of(Settings(max_num_seqs=1), url, tmp_path / "mine", None, 0, lambda _: None)
        assert not list(tmp_path.iterdir())
        s = settings_of(Settings(max_num_seqs=1, cpu_tokens=3200), url, tmp_path / "mine", None, 0, lambda _: None)
    assert s.cpu_tokens == 3200


def test_one_that_does_not_answer_or_is_no_vllm(tmp_path):
    trace = tmp_path / "t.parquet"
    write_trace(generate("webarena", 3, sessions=40, max_context=32_768), trace)

    def learn(*more: str) -> None:
        load("learn")(["learn", str(trace), "--out", str(tmp_path / "mine"), "--wandb", "disabled", *more],
                      prog_name="saga-rl", standalone_mode=False)

    with pytest.raises(UserError, match="no server answers there"):
        learn("--server", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="are both given"):
        learn("--server", "http://127.0.0.1:9", "--profile", "h100-llama3-70b-tp4")
    with served(FakeServer()) as url, pytest.raises(UserError, match="does not say on /metrics how large"):
        learn("--server", url)
    assert list(tmp_path.iterdir()) == [trace]
