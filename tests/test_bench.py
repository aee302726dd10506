"""`saga-rl bench` without an engine: sessions, demand, arms, flags, statistics, a whole bench against known servers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_stand import Stand, make, spec
from replay_server import FakeServer
from rich.console import Console
from trace_kit import DOUBT, doubtful
from typer.testing import CliRunner

from saga_rl.aeg.build import SessionSpec, StepSpec
from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.cli.main import app
from saga_rl.errors import UserError
from saga_rl.experiments.bench import judge, material, router, server_pool, servers, tables
from saga_rl.experiments.bench.arms import ARMS, INFINITE, STOCK, Arm, chosen, resolve
from saga_rl.experiments.bench.demand import concurrency_for, demand, live_tokens, whole_pool
from saga_rl.experiments.bench.measure import cells, order
from saga_rl.experiments.bench.plan import make as plan_of
from saga_rl.experiments.bench.play import held, line, on_device, play
from saga_rl.experiments.bench.run import run
from saga_rl.experiments.bench.server_pool import ServerPool
from saga_rl.experiments.bench.servers import Need, broken, flags, need
from saga_rl.experiments.bench.settings import Settings
from saga_rl.experiments.progress import Shown
from saga_rl.files import locked
from saga_rl.processes import Child
from saga_rl.replay.drive import Measured
from saga_rl.sim.cost.profile import load_profile

BLOCK = 4
PROFILE = "h100-llama3.1-8b-tp1"
ALL = tuple(ARMS.values())


def settings(*names: str, **more: Any) -> Settings:
    given: dict[str, Any] = {"traces": ("t.parquet",), "emulate": PROFILE, "engines": 2, "concurrency": 6, "repeats": 2,
                             "flags": ("--block-size", str(BLOCK)), "expiry_s": 0.01}
    return Settings(tuple(ARMS[n] for n in names or ("stock", "likely")), **(given | more))


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """Two traces whose sessions share a text, one with a session that is long."""
    for name, more in (("one", [spec("long", 3, first=4000)]), ("two", [spec("slow", 3, gap=500.0)])):
        write_trace(make(*(spec(f"{name}{k}", 2 + k % 3, shared="text") for k in range(9)), *more),
                    tmp_path / f"{name}.parquet")
    return str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet")


# ---------------------------------------------------------------------- demand
def test_live_demand_by_hand():
    """a holds 24 tokens (22 in whole blocks) over 0..2, 32 over 2..5; b 24 over 1..4. New sessions start over 0..1."""
    trace = make(spec("a", 2), spec("b", 1))
    sent, done = np.array([0.0, 2.0, 1.0]), np.array([1.0, 5.0, 4.0])
    assert live_tokens(trace, sent, done, 2, BLOCK) == pytest.approx(24)
    sent[2] = 3.0  # 24 for 2 s, then 32 for 1 s
    assert live_tokens(trace, sent, done, 2, BLOCK) == pytest.approx((2 * 24 + 32) / 3)


def test_a_text_that_sessions_share_counts_once_an_engine():
    alone = make(*(spec(str(k), 1) for k in range(3)))
    same = make(*(spec(str(k), 1, shared="text") for k in range(3)))
    sent, done = np.zeros(3), np.ones(3)
    assert live_tokens(alone, sent, done, 2, BLOCK) == 3 * 24
    assert live_tokens(same, sent, done, 2, BLOCK) == 3 * (24 - 8) + 2 * 8
    assert live_tokens(same, sent, done, 1, BLOCK) == 3 * (24 - 8) + 8


def test_a_load_is_so_many_sessions_that_their_demand_is_nearest_to_it():
    traces, profile = [make(*(spec(f"{k}", 3, first=200 + 8 * k, gap=5.0) for k in range(24)))], load_profile(PROFILE)
    found = concurrency_for(2.0, traces, 2, 600, profile, BLOCK)

    def off(n: int) -> float:
        return abs(demand(traces[0], n, 2, profile, BLOCK) - 2.0 * 2 * 600)

    assert 1 < found < 24 and off(found) <= min(off(found - 1), off(found + 1))
    with pytest.raises(UserError, match="all 24 sessions at once want"):
        concurrency_for(2.0, traces, 2, 60_000, profile, BLOCK)
    st = traces[0].steps
    new = int((st.prompt_tokens + st.output_tokens - st.prefix_tokens).sum())
    assert new <= whole_pool(traces, BLOCK) <= new + 3 * BLOCK * len(st.session)


# ---------------------------------------------------------------------- sessions
def test_sessions_are_drawn_evenly_and_anew_for_each_repeat(files):
    s = settings(traces=files, sessions=8, drop_long=True, longest_wait_s=100.0)
    found = material.load(s, 1024, None)
    assert found.left_out == {"longer than the window": 1, "tools take more than 100 s": 1}
    draws = [material.draw(found, s, r) for r in (0, 0, 1)]
    names = [t.sessions.session_id for t in draws]
    assert names[0] == names[1] != names[2]
    for t in draws:
        assert sorted(t.tenants) == ["one", "two"] and np.bincount(t.sessions.tenant).tolist() == [4, 4]
        assert len(set(t.sessions.session_id)) == 8 and sorted(set(t.shared_prefixes)) == ["one/text", "two/text"]
    alone = material.load(settings(traces=files[:1], drop_long=True, steps=(3, 4)), 1024, None)
    assert alone.left_out == {"not of 3 to 4 steps": 3, "longer than the window": 1}
    assert material.draw(alone, settings(), 0).n_sessions == alone.trace.n_sessions == 6


@pytest.mark.parametrize(("more", "window", "pool", "message"), [
    ({}, 1024, None, "one: has 1 of 10 sessions with more context than the window of 1,024 tokens.*give --window 4096"),
    ({}, 1024, 2048, "give --window 4096 and --kv-tokens 4096, or leave them out with --drop-long"),
    ({}, 8192, 2048, "the KV pool of an engine of 2,048 tokens.*give --kv-tokens 4096"),
    ({"sessions": 7}, None, None, "2 traces cannot share evenly"),
    ({"sessions": 40}, None, None, "a run draws 20 of it"),
    ({"steps": (50, 60)}, None, None, "has 0 sessions within the limits"),
])
def test_sessions_that_do_not_fit_are_refused_with_the_flag_that_mends_it(files, more, window, pool, message):
    with pytest.raises(UserError, match=message):
        material.load(settings(traces=files, **more), window, pool)


def test_agentx_users_share_nothing():
    trace = make(*(spec(str(k), 2, shared="text") for k in range(3)))
    mine = material.apart(trace, np.random.default_rng(0))
    firsts = mine.steps.shared_prefix[mine.session_offsets[:-1]]
    assert len(set(firsts.tolist())) == 3 and len(set(mine.shared_prefixes)) == 3
    server = FakeServer(block=BLOCK)
    with Stand(server) as stand:
        play(settings(), ARMS["stock"], mine, stand.url, "x/", 1)
    prompts = [tuple(r["body"]["prompt"][:8]) for r in server.requests]
    assert len({prompts[i] for i in mine.session_offsets[:-1]}) == 3
    first = material.first_calls(trace, 2, "warm")
    assert (first.n_sessions, first.n_steps) == (2, 2) and first.steps.prompt_tokens.tolist() == [20, 20]


# ---------------------------------------------------------------------- arms and servers
def test_arms_differ_in_what_their_names_say_and_in_nothing_else():
    s = settings(*ARMS, cpu_tokens=1000, expiry_s=300.0)
    needs = {a.name: need(s, a, 3200, 99_996, 1 << 20) for a in ALL}
    told = {name: flags(s, n, 4096, 1) for name, n in needs.items()}
    stock = set(told[STOCK])
    assert needs[STOCK] == Need("stock", 1, 2, 3200, 0, "stock")
    assert needs["router"] == Need("routed", 2, 1, 3200, 1000 << 20, "stock") == needs["router-program"]
    assert needs[INFINITE].pool == 99_996 and not needs[INFINITE].tier_bytes
    assert set(told["stock+tier"]) - stock == {"--kv-offloading-size", "0.976562"}
    assert set(told["priority"]) - set(told["stock+tier"]) == {"--scheduling-policy", "priority"}
    ours = {"--expiry-s", "300", "--additional-config",
            '{"saga": {"policy_root": "/"}, "saga_http": {"tenant_in_body": true}}'}
    for name in ("sticky", "saga", "saga+", "likely"):
        more = set(told[name]) - stock
        tier = json.loads(told[name][told[name].index("--kv-transfer-config") + 1])["kv_connector_extra_config"]
        assert ours < more and ARMS[name].policy in more and len(more) == len(ours) + 3
        assert tier["cpu_bytes_to_use"] == 1000 << 20 and tier["eviction_policy"] == "SagaCachePolicy"
        assert stock - set(told[name]) == {"stock"}
    assert set(told[INFINITE]) - stock == {"lru", "99996", *ours}
    assert stock - set(told["router"]) == {"--data-parallel-size", "2", "--api-server-count"}
    assert {a.name for a in ALL if a.priority} == {"priority"} and told[STOCK][-2:] == ["--block-size", "4"]
    real = settings(emulate=None, model="m", kv_tokens=3200)
    words = flags(real, need(real, ARMS["stock"], 3200, 0, 0.0), None, 1)
    assert words[words.index("--num-gpu-blocks-override") + 1] == "801"  # vLLM keeps one
    assert "--emulate" not in words and "--max-model-len" not in words
    real = settings("stock", "router", emulate=None, model="m", flags=("--tensor-parallel-size", "2"))
    apart = need(real, ARMS["router"], 3200, 0, 0.0)
    assert [server_pool.environment(real, apart, k, None)["CUDA_VISIBLE_DEVICES"] for k in (0, 1)] == ["0,1", "2,3"]
    assert server_pool.environment(real, apart, 1, "4,5,6,7") == {"CUDA_VISIBLE_DEVICES": "6,7"}
    assert not server_pool.environment(real, need(real, ARMS["stock"], None, 0, 0.0), 0, None)


def test_arms_are_named_in_a_list_and_checkpoints_by_their_folder():
    assert [a.name for a in chosen("", True)] == list(ARMS)
    assert [a.name for a in chosen("", False)] == [n for n in ARMS if n not in ("stock+tier", "stock+lazy")]
    folder = str(Path(__file__).resolve().parents[1] / "checkpoints" / "joint-hidden")
    mine = resolve(folder)
    assert (mine.name, mine.policy, mine.host) == (folder, folder, "ours")
    for names, message in (("stock,sage", "no arm named 'sage'; choose one of: saga"), ("saga,likely", "lacks stock"),
                           ("stock,stock+tier", "there is no tier; give --cpu-tokens"), ("stock", "at least one more")):
        with pytest.raises(UserError, match=message):
            chosen(names, False)


class Made:
    """Servers that a pool made, in the place of real ones."""

    def __init__(self) -> None:
        self.all: dict[str, Stand] = {}

    def __call__(self, name: str, model: str, words: list[str], port: int, log: Path, policy: str, env: Any) -> Stand:
        self.all[name] = Stand(FakeServer(block=BLOCK, max_model_len=4096), policy)
        return self.all[name]


def test_a_fleet_keeps_what_fits_and_stops_what_learns_last(monkeypatch, tmp_path):
    made, s = Made(), settings(*ARMS)
    monkeypatch.setattr(server_pool, "Server", made)
    warmed: list[str] = []
    with ServerPool(s, "m", None, tmp_path, 2, None, None, warmed.append, lambda text: None) as up:
        for name in ("saga", "stock", "priority", "likely"):
            up.host(need(s, ARMS[name], 100, 0, 0.0))
        assert list(up.up) == ["priority", "ours"] and made.all["stock"].stopped and len(warmed) == 3
        dead = made.all["ours"]
        dead.process.poll = lambda: 1
        again = up.host(need(s, ARMS["saga"], 100, 0, 0.0))
        assert dead.stopped and again.servers[0] is made.all["ours"] is not dead and again.runs == 0
        assert up.url(again, ARMS["saga"]) == again.servers[0].url
    assert all(stand.stopped for stand in made.all.values()) and not up.up


def test_what_fails_to_start_is_told_with_its_last_lines(tmp_path):
    with Child("router program", [sys.executable, "-c", "print('first'); print('no such flag'); exit(3)"],
               tmp_path / "r.log") as child:
        with pytest.raises(UserError) as e:
            servers.wait_for(child, "http://127.0.0.1:1/health", 60)
        assert str(e.value).startswith("router program: ended with status 3 before it was ready; mend what")
        assert str(e.value).endswith("first\nno such flag")
    assert "no such flag" in str(broken(child, "stopped"))


def test_a_fleet_that_cannot_start_leaves_no_process(monkeypatch, tmp_path):
    monkeypatch.setattr(servers, "SERVE", (sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)"))
    monkeypatch.setattr(servers, "NICE", ())
    s = settings(*ARMS)
    with ServerPool(s, "m", 2048, tmp_path, 2, None, None, print, print) as up:
        with pytest.raises(UserError, match="server routed-0: ended with status 3"):
            up.host(need(s, ARMS["router"], 100, 0, 0.0))
        assert not up.up


# ---------------------------------------------------------------------- vLLM Router
@pytest.mark.parametrize("name", [PROFILE, "h100-qwen3-32b-tp2", "a100-llama3-70b-tp4"])
def test_the_routers_cost_models_are_near_the_profile(name):
    profile = load_profile(name)
    m = router.fitted(profile)
    for tokens in (1024, 5000, 20_000, 60_000, 131_072):
        k = tokens / 1000
        assert m.intercept_s + m.linear_s * k + m.quadratic_s * k * k == pytest.approx(
            router.cold_prefill_s(profile, tokens), rel=0.08)
    for batch, context in ((1, 2000), (8, 300_000), (48, 400_000)):
        assert m.step_s + m.request_s * batch + m.context_s * context == pytest.approx(
            profile.seconds(kv_read=context, decoding=batch), rel=0.08)
    assert min(vars(m).values()) >= 0 and m.step_s > 0


def test_the_router_is_told_in_real_seconds_and_without_a_default_calibration():
    m = router.Models(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    config = router.program_config(m, 1000, 2.0)
    assert config["token_capacity_per_dp_rank"] == 1000 and config["max_acting_ttl_seconds"] == 5.0
    assert config["prefill_cost_model"] == {"intercept_seconds": 0.05, "linear_seconds_per_1k_tokens": 0.1,
                                            "quadratic_seconds_per_1k_tokens_squared": 0.15,
                                            "decode_throughput_alpha": 0.15}
    assert list(config["decode_throughput_model"].values()) == [0.2, 0.25, 0.3]
    plain, program = (router.command("r", 1, 2, ["http://a", "http://b"], c) for c in (None, config))
    assert plain[:6] == ["r", "--host", "127.0.0.1", "--port", "1", "--worker-urls"] and "consistent_hash" in plain
    assert program[:len(plain)] == plain and json.loads(program[-1]) == config


def test_a_router_that_is_not_installed_is_told_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(router.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"vllm-router: is not installed.*; pip install vllm-router, or leave"):
        router.require_installed()


# ---------------------------------------------------------------------- one run
def test_clients_tell_what_they_know_and_no_more():
    trace = make(*(spec(str(k), 2 + k % 3) for k in range(6)),
                 SessionSpec("sub", 0.0, [StepSpec(20, 2, tool="task"), StepSpec(20, 2, parents=(0,), agent=1)]))

    def asked(s: Settings, arm: Arm) -> list[dict[str, Any]]:
        server = FakeServer(block=BLOCK)
        with Stand(server) as stand:
            play(s, arm, trace, stand.url, "r0/", 6)
        return server.requests

    plain = [r["body"] for r in asked(settings(), ARMS["likely"])]
    hints = [b["vllm_xargs"] for b in plain]
    assert len(plain) == trace.n_steps and all(b["session_id"].startswith("r0/") for b in plain)
    assert {k for h in hints for k in h} == {"saga_agent", "saga_agent_type", "saga_tenant", "saga_tool"}
    assert all("priority" not in b for b in plain)
    ends = [r["body"] for r in asked(settings(ends=True), ARMS["likely"])]
    assert sum(b["vllm_xargs"]["saga_final"] for b in ends) == trace.n_sessions
    ranked = [r["body"] for r in asked(settings(), ARMS["priority"])]
    ranks = [{b["priority"] for b in ranked if b["session_id"] == "r0/" + sid} for sid in trace.sessions.session_id]
    assert ranks == [{k} for k in range(trace.n_sessions)]
    named = [r["headers"] for r in asked(settings(), ARMS["router-program"])]
    assert {h["X-Claude-Code-Session-ID"] for h in named} == {"r0/" + sid for sid in trace.sessions.session_id}
    assert [h["X-Claude-Code-Agent-ID"] for h in named if "X-Claude-Code-Agent-ID" in h] == ["r0/sub-1"]
    assert all("X-Claude-Code-Session-ID" not in r["headers"] for r in asked(settings(), ARMS["router"]))


def test_times_are_the_devices():
    trace = make(spec("a", 2, gap=2.0))
    with Stand(FakeServer(block=BLOCK, first_s=0.02)) as stand:
        _, m = play(settings(time_scale=10.0), ARMS["stock"], trace, stand.url, "", None)
    assert 2.0 + 2 * 10 * 0.02 <= m.end_s[0] - m.start_s[0] < 4.0  # a tool of 2 s took 0.2
    assert on_device(m, 1.0) is m


def test_what_a_session_held_is_what_its_requests_tell():
    """20 tokens and 2 answered, 8 of the next prompt's 28 found cached, then 28 + 2."""
    trace = make(spec("a", 2))
    m = Measured(*(np.array(x, float) for x in ([0, 6], [0, 6], [2, 8], [4, 10])), np.array([0, 8]), np.array([20, 8]),
                 np.array([20, 28]), np.array([2, 2]), np.zeros(1), np.array([10.0]))
    found = held(trace, m, samples=11)
    assert found["time_s"] == list(range(11))
    assert [row[0] for row in found["tokens"]] == [0, 0, 20, 21, 22, 8, 8, 8, 28, 29, 30]


def test_a_run_with_a_failed_request_is_counted_and_left_out():
    trace, s = make(*(spec(str(k), 3) for k in range(4))), settings()
    runs = {}
    for r, fails in ((0, None), (1, lambda n, body: 500 if n == 5 else None)):
        for name in ("stock", "likely"):
            with Stand(FakeServer(block=BLOCK, fail=fails if name == "likely" else None)) as stand:
                shown, m = play(s, ARMS[name], trace, stand.url, f"{r}/", 6)
            runs[name, r] = line(s, ARMS[name], r, 0, 64, trace, m, shown, 0)
    assert runs["likely", 1]["failed"] == 1 and "made to fail" in runs["likely", 1]["errors"][0]
    arms = judge.judge(["stock", "likely"], 2, runs)
    assert (arms["likely"]["repeats"], arms["likely"]["failed_runs"]) == (1, 1)
    assert tables.rows(arms)[1][-1] == "1 (1 failed)"


# ---------------------------------------------------------------------- statistics and order
def test_in_time_is_within_so_many_times_infinite_memory():
    free = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 1.0}
    assert judge.in_time({"a": 3.0, "b": 3.01, "c": 0.5}, free, 1.5) == 0.5  # d failed
    assert judge.in_time(free, free, 1.0) == 1.0


def test_the_order_of_the_arms_is_drawn_anew_and_is_the_same_after_a_restart():
    s = settings(*ARMS, cpu_tokens=64, repeats=6)
    for grouped in (True, False):
        orders = [[a.name for a in order(s, r, grouped)] for r in range(6)]
        assert all(sorted(o) == sorted(ARMS) for o in orders) and len(set(map(tuple, orders))) > 1
        assert orders == [[a.name for a in order(s, r, grouped)] for r in range(6)]
        runs = [sum(ARMS[a].host != ARMS[b].host for a, b in pairwise(o)) for o in orders]
        assert all((n == len({a.host for a in ALL}) - 1) == grouped for n in runs)
        made = cells(s, grouped)
        assert list(made) == [(a, r) for r, names in enumerate(orders) for a in names]
        assert len({cell.key for cell in made.values()}) == 6 * len(ARMS)


# ---------------------------------------------------------------------- a whole bench
@pytest.fixture
def model(tmp_path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    return str(folder)


def test_a_bench_measures_goes_on_and_says_emulated(files, model, monkeypatch, tmp_path, capsys):
    made, out = Made(), tmp_path / "out"
    monkeypatch.setattr(server_pool, "Server", made)
    arms = ("stock", "saga+", "likely", "infinite")
    s = settings(*arms, traces=files, model=model, sessions=8, kv_tokens=4096, drop_long=True, longest_wait_s=100.0,
                 agentx=True, quiet_s=0.01)
    run(replace(s, repeats=1), out, at_once=3)
    assert not made.all["ours"].emptied[0] and made.all["ours"].emptied[1] == pytest.approx(1.01)
    assert {"saga+", "likely"} == set(made.all["ours"].policies[1:])
    lines = (out / "journal.jsonl").read_text().splitlines()
    run(s, out, at_once=1)
    assert (out / "journal.jsonl").read_text().splitlines()[:len(lines)] == lines
    result = json.loads((out / "result.json").read_text())
    assert result["complete"] and list(result["arms"]) == list(arms)
    for name, a in result["arms"].items():
        assert {"tct_mean_s", "tct_p95_s", "ttft_mean_s", "ttft_p95_s", "recomputed_tokens", "hit_share",
                "throughput_sessions_per_min", "of_stock"} <= set(a) and a["repeats"] == 2
        assert (a["of_stock"]["mean"] == 1.0) == (name == "stock") and set(a["of_stock"]) == {"mean", "low", "high"}
        assert set(a["tenants"]) == {"one", "two"}
    source = result["provenance"]
    assert source["device"] == "emulated" and source["profile"] == PROFILE
    assert {"commit", "seed", "trace_sha256", "vllm", "machine"} <= set(source) and len(source["trace_sha256"]) == 2
    page, shown = (out / "index.html").read_text(), capsys.readouterr().out
    assert page.count("<img") == 4 and "EMULATED devices" in page and "By tenant" in page
    assert "EMULATED" in shown and "saga+" in shown and str(out) in shown.replace("\n", "")
    with pytest.raises(UserError, match=r"expiry_s was 0.01, is 7.0"):
        run(replace(s, expiry_s=7.0), out)
    with locked(out, "bench"), pytest.raises(UserError, match="in use"):
        run(s, out)
    before = (out / "journal.jsonl").read_bytes()
    run(s, out, report_only=True)
    assert json.loads((out / "result.json").read_text()) == result and (out / "journal.jsonl").read_bytes() == before
    run(replace(s, expiry_s=7.0, repeats=1), out, at_once=3, fresh=True)
    assert (tmp_path / "out.old-1" / "journal.jsonl").read_bytes() == before
    assert json.loads((out / "result.json").read_text())["arms"]["likely"]["repeats"] == 1


def test_a_bench_of_the_earlier_format_is_shown_and_goes_on(files, model, monkeypatch, tmp_path):
    """`experiment.json` did not exist; the journal's first line said what is measured."""
    made, out = Made(), tmp_path / "out"
    monkeypatch.setattr(server_pool, "Server", made)
    s = settings(traces=files, model=model, sessions=8, kv_tokens=4096, drop_long=True, longest_wait_s=100.0, repeats=1)
    run(s, out, at_once=3)
    result = json.loads((out / "result.json").read_text())
    head = {"kind": "bench", "what": json.loads((out / "experiment.json").read_text())["what"]}
    (out / "experiment.json").unlink()
    lines = (out / "journal.jsonl").read_text()
    (out / "journal.jsonl").write_text(json.dumps(head) + "\n" + lines)
    run(s, out, report_only=True)
    assert json.loads((out / "result.json").read_text()) == result
    run(replace(s, repeats=2), out, at_once=3)
    assert (out / "journal.jsonl").read_text().startswith(json.dumps(head) + "\n" + lines)
    assert json.loads((out / "result.json").read_text())["complete"]


def test_a_plan_runs_and_writes_nothing(files, model, tmp_path, capsys):
    s = settings(traces=files, model=model, drop_long=True, kv_tokens=512)
    run(s, tmp_path / "out", plan_only=True)
    said = capsys.readouterr().err
    assert "EMULATED" in said and "1 left out: longer than the window" in said and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="has no run yet"):
        run(s, tmp_path / "out", report_only=True)


def test_nobody_quotes_a_completion_time_from_invented_waits(files, model, monkeypatch, tmp_path, capsys):
    """The quality line of each trace stands in the plan, in the result, on the page and under the tables."""
    write_trace(doubtful(read_trace(files[0])), files[0])
    s = settings(traces=files, model=model, sessions=8, kv_tokens=4096, drop_long=True, longest_wait_s=100.0, repeats=1)
    run(s, tmp_path / "out", plan_only=True)
    assert "tools 75 % recorded, 25 % missing" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(server_pool, "Server", Made())
    run(s, tmp_path / "out", at_once=3)
    doubt = f"one: {DOUBT}"
    assert doubt in " ".join(capsys.readouterr().out.split())
    assert doubt in (tmp_path / "out" / "index.html").read_text()
    found = json.loads((tmp_path / "out" / "result.json").read_text())["trace_quality"]
    assert set(found) == {"one", "two"}
    assert found["one"]["tools"] == {"recorded": 0.75, "estimated": 0.0, "missing": 0.25}


def test_the_emulated_model_is_the_profiles_own_and_the_window_no_larger_than_the_pool(files, tmp_path):
    s = settings("stock", "stock+tier", traces=files, cpu_tokens=4096, kv_tokens=8195)
    plan = plan_of(s)
    assert (plan.shape, plan.pool, plan.window) == ("llama3.1-8b", 8192, 8192) and plan.token_bytes == 131_072
    folder = Path(plan.model(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    assert config["max_position_embeddings"] == 8192 and plan.model(tmp_path) == str(folder)
    with pytest.raises(UserError, match="--window: is 9,000, more than the KV pool of an engine, 8,192"):
        plan_of(replace(s, window=9000))


@pytest.mark.parametrize(("words", "message"), [
    (["--arms", "stock,sage"], "no arm named 'sage'; choose one of: saga"),
    (["--emulate", "h100-llama3.1-8b"], "no profile named 'h100-llama3.1-8b'; choose one of: h100-llama3.1-8b-tp1"),
    (["--model", "EMPTY"], "has no config.json"),
    (["--model", "no/such"], "is no folder, and --emulate needs"),
    (["--repeats", "0"], "--repeats: is 0; give 1 or more"),
    (["--time-scale", "0"], "--time-scale: is 0.0; give a number above 0"),
    (["--load", "2"], "is needed, and not both"),
    (["--repeat", "3"], "--repeat: is no option of saga-rl bench; did you mean --repeats"),
    (["--steps", "4"], "write two numbers, such as 4-40"),
    (["--window", "2048", "--drop-long", "--out", "no/such/out"], "is no folder that can be written to"),
    (["--window", "2048"], "more context than the window of 2,048 tokens"),
    (["--kv-tokens", "2048"], "--kv-tokens 4096"),
    (["--arms", "stock,stock+tier"], "there is no tier"),
])
def test_a_mistake_is_told_before_anything_is_started_or_written(files, tmp_path, words, message):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    given = ["bench", files[0], "--emulate", PROFILE, "--concurrency", "4", "--out", str(out), "--arms", "stock,likely"]
    done = CliRunner().invoke(app, [*given, *(str(empty) if w == "EMPTY" else w for w in words)])
    assert isinstance(done.exception, UserError) and message in str(done.exception), done.exception
    assert not out.exists()


@pytest.mark.parametrize(("more", "message"), [
    ({"emulate": None}, "--emulate or --model: is missing"),
    ({"emulate": None, "model": "m", "time_scale": 2.0}, "without --emulate"),
    ({"emulate": None, "model": "m"}, "names infinite, and a real device's pool"),
])
def test_real_devices_cannot_do_what_emulated_ones_can(more, message):
    with pytest.raises(UserError, match=message):
        settings("stock", "infinite", **more)


def test_without_a_terminal_a_line_every_few_seconds(capsys):
    now = [0.0]
    with Shown(Console(force_terminal=False), 2, clock=lambda: now[0]) as shown:
        shown.begin("repeat 1, likely", 9)
        for _ in range(4):
            now[0] += 6.0
            shown.watch("step")
        shown.finish("repeat 1, likely: done")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  [0/2] repeat 1, likely, 18 s: 3 of 9 steps, 0 sessions over", "[1/2] repeat 1, likely: done"]
