"""The parts of `benchmarks/serving_gain.py` that need no engine: demand, draws, flags, journal, statistics, tables."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gain_stand import Stand, make, spec
from replay_server import FakeServer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from gain_kit import judge, measure, own, show
from gain_kit.command import chosen, parser
from gain_kit.demand import live_tokens, pools
from gain_kit.engines import flags, host
from gain_kit.journal import Journal
from gain_kit.material import draw, eligible, stocks
from gain_kit.run import line, play
from gain_kit.settings import ARMS, INFINITE, STOCK, Setup, Source

from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.scale import delayed
from saga_rl.demo.stages import Child
from saga_rl.errors import UserError
from saga_rl.files import locked
from saga_rl.policies.presets import preset
from saga_rl.sim.cluster import simulate
from saga_rl.sim.config import SimConfig
from saga_rl.sim.cost import CostProfile

BLOCK = 4
SOURCES = (Source("one", "weka", "-", 0.5, 0.1), Source("two", "katas", "-", 1.0, 1.0))
SETUP = Setup(arms=("stock", "saga+", "infinite"), pressures=(1.5, 3.0), repeats=2, sources=SOURCES, sessions=8,
              alive=6, steps=(2, 4), max_context=64, block_tokens=BLOCK, expiry_s=0.01)


@pytest.fixture(scope="module")
def found():
    return [eligible(s, make(*(spec(f"{s.name}{k}", 2 + k % 3, shared="text") for k in range(9))), SETUP)
            for s in SOURCES]


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


def test_the_demand_is_so_many_times_the_pool(found):
    setup = replace(SETUP, max_context=4)
    traces = [draw(found, setup, r) for r in range(2)]
    size = pools(traces, setup)
    assert size.demand == pytest.approx(np.mean(size.demands))
    for pressure, tokens in zip(setup.pressures, size.tokens, strict=True):
        assert tokens % BLOCK == 0
        assert abs(size.demand / pressure - 2 * tokens) <= BLOCK  # half a block an engine
    assert size.whole >= max(int((t.steps.prompt_tokens + t.steps.output_tokens)[t.session_offsets[1:] - 1].sum())
                             for t in traces)
    with pytest.raises(UserError, match="a context may have"):
        pools(traces, replace(setup, pressures=(100.0,)))


def test_sessions_are_drawn_within_the_limits_evenly_and_anew_for_each_repeat(found):
    one, two = found
    assert (one.imported, one.trace.n_sessions) == (9, 9)
    assert one.trace.meta.notes["length_factor"] == 0.5 and one.trace.steps.prompt_tokens[0] == 10
    assert two.trace.steps.prompt_tokens[0] == 20
    few = eligible(SOURCES[1], make(*(spec(str(k), 2 + k % 3) for k in range(9)), spec("long", 4, first=50),
                                    spec("slow", 4, gap=500.0), spec("short", 1)), SETUP)
    assert (few.trace.n_sessions, few.imported) == (9, 12)
    draws = [draw(found, SETUP, r) for r in (0, 0, 1)]
    names = [t.sessions.session_id for t in draws]
    assert names[0] == names[1] != names[2]
    for t in draws:
        assert t.tenants == ["one", "two"] or t.tenants == ["two", "one"]
        assert np.bincount(t.sessions.tenant).tolist() == [4, 4]
        assert len(set(t.sessions.session_id)) == 8 and np.all(np.diff(t.sessions.arrival_s) > 0)
        assert t.steps.tool_s.max() == pytest.approx(0.02)
        assert sorted(set(t.shared_prefixes)) == ["one/text", "two/text"]
    with pytest.raises(UserError, match="draw fewer"):
        eligible(SOURCES[0], make(spec("a")), SETUP)


def test_arms_differ_in_what_their_names_say_and_in_nothing_else():
    setup = Setup()
    told = {arm: flags(setup, arm, 3200, 1) for arm in ARMS}
    policy = {arm: f[f.index("--policy") + 1] for arm, f in told.items() if "--policy" in f}
    assert policy == {"stock": "stock", "sticky": "lru", "priority": "stock", "saga": "saga", "saga+": "saga+",
                      "likely": "likely", "checkpoint": "checkpoints/joint-hidden",
                      "own": "runs/serving_gain/own/checkpoint", "infinite": "lru"}
    stock = set(told[STOCK])
    assert set(told["priority"]) - stock == {"--scheduling-policy", "priority"}
    ours = {"--expiry-s", "15", "--additional-config", '{"saga_http": {"tenant_in_body": true}}'}
    for arm in ("sticky", "saga", "saga+", "likely", "checkpoint", "own", "infinite"):
        assert set(told[arm]) - stock == {policy[arm], *ours}
        assert stock - set(told[arm]) == {"stock"}
    config = flags(replace(setup, policies=(("saga", {"admission": "reserve-older:likely=1"}),)), "saga", 3200, 1)
    assert json.loads(config[config.index("--additional-config") + 1])["saga"]["policy"] == {
        "admission": "reserve-older:likely=1"}
    assert told[STOCK][told[STOCK].index("--num-gpu-blocks-override") + 1] == "101"  # vLLM keeps one
    assert [a for a in ARMS if ARMS[a].priority] == ["priority"] and [a for a in ARMS if ARMS[a].whole] == [INFINITE]
    assert "--data-parallel-size" not in flags(replace(setup, engines=1), STOCK, 3200, 1)


def test_arms_that_differ_in_our_policy_share_a_server():
    hosts = {arm: host(Setup(), arm) for arm in ARMS}
    assert hosts == {"stock": "stock", "sticky": "ours", "priority": "priority", "saga": "ours", "saga+": "ours",
                     "likely": "ours", "checkpoint": "ours", "own": "ours", "infinite": "infinite"}


def test_own_is_searched_on_sessions_that_no_run_draws(tmp_path):
    """As a user would on his engines: same limits, pools and expiry, ends hidden, from the shipped checkpoint on."""
    for name in ("one", "two"):
        write_trace(make(*(spec(f"{name}{k}", 2 + k % 4) for k in range(40))), tmp_path / f"{name}.parquet")
    drawn = {f"{s.source.name}/{sid}" for s in stocks(SETUP, tmp_path, tmp_path) for sid in s.trace.sessions.session_id}
    searched = {part: set(t.sessions.session_id) for part, t in own.own_sessions(SETUP, tmp_path, tmp_path).items()}
    parts = {part: tmp_path / f"{part}.parquet" for part in searched}
    assert set(searched) == {"train", "validation"} and all(len(x) > 5 for x in searched.values())
    assert not searched["train"] & searched["validation"]
    assert len(drawn) > 10 and not drawn & (searched["train"] | searched["validation"])
    command = own.search_command(SETUP, parts, (40, 80), tmp_path / "profile.json", tmp_path / "own")
    assert command[3:5] == [f"{parts['train']}@hidden"] * 2
    given = dict(zip(command[5::2], command[6::2], strict=True))
    assert given["--kv-tokens"] == "40,80" and given["--workers"] == "2" and given["--population"] == "3"
    assert given["--expiry-s"] == "0.01" and given["--block-tokens"] == "4"
    assert given["--start"].endswith("joint-hidden")
    told = own.search_command(replace(SETUP, ends=True), parts, (40,), tmp_path / "p.json", tmp_path / "own")
    assert told[3] == str(parts["train"])


def test_a_checkpoint_of_ones_own_is_made_once(tmp_path, monkeypatch):
    """The costs of the engines are timed, then the script is run; where both are there, nothing is done again."""
    ran: list[list[str]] = []

    def child(name: str, command: list[str], log: Path) -> Any:
        ran.append(command)
        (tmp_path / "own" / "checkpoint" / "admission").mkdir(parents=True)
        return real([sys.executable, "-c", "print('found it')"], log)

    def real(command: list[str], log: Path) -> Child:
        return Child("search", command, log)

    for name in ("one", "two"):
        write_trace(make(*(spec(f"{name}{k}", 2 + k % 4) for k in range(40))), tmp_path / f"{name}.parquet")
    setup = replace(SETUP, engines=1)
    traces = [draw(stocks(setup, tmp_path, tmp_path), setup, 0)]
    size = replace(pools(traces, replace(setup, max_context=4)), whole=4096)
    monkeypatch.setattr(own, "Server", lambda *rest: Stand(FakeServer(block=BLOCK, max_model_len=2048)))
    monkeypatch.setattr(own, "Child", child)
    bench = measure.Bench(setup, traces, size, tmp_path / "tiny", tmp_path, Journal(tmp_path / "j.jsonl", {}),
                          Console(quiet=True), {})
    for _ in range(2):
        own.make_own(bench, tmp_path, tmp_path / "own" / "checkpoint", Console(quiet=True))
    assert len(ran) == 1 and (tmp_path / "profile.json").exists()
    request_s = json.loads((tmp_path / "own" / "loaded.json").read_text())["request_s"]
    before, after = own.own_sessions(setup, tmp_path, tmp_path)["train"], read_trace(tmp_path / "own" / "train.parquet")
    assert after.steps.tool_s == pytest.approx(before.steps.tool_s + request_s)


def test_what_a_request_takes_besides_is_found_again(found):
    """Behind an API server that takes 30 ms more a request."""
    profile = CostProfile("t", 2e-3, 1e-4, 1e-7, 1e-4)
    trace, pool = draw(found, SETUP, 0), 4096
    config = SimConfig(workers=2, kv_tokens=pool, block_tokens=BLOCK, max_num_seqs=32, max_batched_tokens=2048,
                       profile=profile, population=SETUP.alive, end_hint=False, expiry_s=SETUP.expiry_s)

    def tct(request_s: float) -> float:
        return float(simulate(delayed(trace, request_s), config, preset("lru"), slo=False).tct_s.mean()) + request_s

    assert own.request_seconds(SETUP, profile, trace, pool, tct(0.03)) == pytest.approx(0.03, rel=0.02)
    assert own.request_seconds(SETUP, profile, trace, pool, 0.9 * tct(0.0)) == pytest.approx(0.0, abs=1e-4)


def test_clients_tell_what_they_know_and_no_more(found):
    trace = draw(found, SETUP, 0)

    def bodies(setup: Setup, arm: str) -> list[dict[str, Any]]:
        server = FakeServer(block=BLOCK)
        with Stand(server) as s:
            play(setup, arm, trace, s.url, "r0/")
        return [r["body"] for r in server.requests]

    plain = bodies(SETUP, "saga+")
    hints = [b["vllm_xargs"] for b in plain]
    assert len(plain) == trace.n_steps and all(b["session_id"].startswith("r0/") for b in plain)
    assert {k for h in hints for k in h} == {"saga_agent", "saga_agent_type", "saga_tenant", "saga_tool"}
    assert sum("saga_tool" in h for h in hints) == trace.n_steps - trace.n_sessions
    assert all("priority" not in b for b in plain)
    ends = bodies(replace(SETUP, ends=True), "saga+")
    assert sum(b["vllm_xargs"]["saga_final"] for b in ends) == trace.n_sessions
    ranked = bodies(SETUP, "priority")
    order = [{b["priority"] for b in ranked if b["session_id"] == "r0/" + sid} for sid in trace.sessions.session_id]
    assert order == [{k} for k in range(trace.n_sessions)]


def test_a_ratio_is_of_pairs_and_its_interval_holds_it():
    rng = np.random.default_rng(1)
    base = [rng.lognormal(size=40) * (1 + r) for r in range(5)]
    mean = judge.mean
    half = judge.ratio([(b / 2, b) for b in base], mean)
    assert (half["ratio"], half["low"], half["high"]) == pytest.approx((0.5, 0.5, 0.5))  # pairs: no noise is left
    noisy = judge.ratio([(b * rng.lognormal(-0.3, 0.2, 40), b) for b in base], mean)
    assert noisy["low"] < noisy["ratio"] < noisy["high"] < 1.0
    tail = judge.ratio([(b / 2, b) for b in base], judge.p95)
    assert (tail["ratio"], tail["low"], tail["high"]) == pytest.approx((0.5, 0.5, 0.5))
    one = judge.ratio([(np.array([3.0]), np.array([2.0])), (np.array([1.0]), np.array([2.0]))], mean)
    assert one["ratio"] == 1.0 and (one["low"], one["high"]) == (0.5, 1.5)
    assert judge.ratio([(np.ones(1), np.zeros(1))], mean)["ratio"] is None


def test_in_time_is_within_so_many_times_infinite_memory():
    free = {"a": 2.0, "b": 2.0, "c": 1.0, "d": 1.0}
    assert judge.in_time({"a": 3.0, "b": 3.01, "c": 0.5}, free, 1.5) == 0.5  # d failed
    assert judge.in_time(free, free, 1.0) == 1.0


def test_a_journal_goes_on_and_drops_what_was_cut_off(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {"seed": 1, "pressures": (1.4,)})
    row = {"kind": "run", "arm": "stock", "pressure": 1.4, "repeat": 0, "x": 1}
    journal.add(row)
    with path.open("a") as file:
        file.write('{"kind": "run", "arm": "sag')
    again = Journal(path, {"seed": 1, "pressures": (1.4,)})
    assert again.done("stock", 1.4, 0) and not again.done("stock", 1.4, 1) and len(again.runs) == 1
    again.add(row | {"repeat": 1})
    assert len(Journal(path, {"seed": 1, "pressures": [1.4]}).runs) == 2
    assert len(Journal(path, {"seed": 1, "pressures": [1.4], "arms": ["one more"]}).runs) == 2
    with pytest.raises(UserError, match="other: seed"):
        Journal(path, {"seed": 2, "pressures": (1.4,)})
    path.write_text("no json\n")
    with pytest.raises(UserError, match="no journal"):
        Journal(path, {})


def test_a_folder_is_measured_in_by_one_at_a_time(tmp_path):
    with locked(tmp_path, "measurement"), pytest.raises(UserError, match="in use"), locked(tmp_path, "measurement"):
        pass
    with locked(tmp_path, "measurement"):
        pass


def test_a_measurement_that_broke_off_goes_on_where_it_was_and_reports_all(found, tmp_path, monkeypatch):
    setup = replace(SETUP, arms=("stock", "saga", "saga+", "infinite"))
    traces = [draw(found, setup, r) for r in range(3)]
    size = pools(traces[:2], replace(setup, max_context=4))
    started: list[tuple[str, int]] = []
    stands: list[Stand] = []

    def stand(setup: Setup, arm: str, model: Path, pool: int, *rest: Any) -> Stand:
        started.append((arm, pool))
        stands.append(Stand(FakeServer(block=BLOCK, capacity=2 * pool // BLOCK,
                                       first_s=0.001 if ARMS[arm].whole else 0.004)))
        return stands[-1]

    def bench() -> measure.Bench:
        journal = Journal(tmp_path / "journal.jsonl", setup.as_dict() | {"pools": {
            "demand": size.demand, "tokens": size.tokens}})
        return measure.Bench(setup, traces, size, tmp_path, tmp_path, journal, Console(quiet=True), {})

    real, done = measure.line, []

    def breaks(*args: Any) -> dict[str, Any]:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(args[1:4])
        return real(*args)

    monkeypatch.setattr(measure, "Server", stand)
    monkeypatch.setattr(measure, "line", breaks)
    with pytest.raises(KeyboardInterrupt):
        measure.measure(bench())
    monkeypatch.setattr(measure, "line", real)
    first, plan = bench(), [(p, *x) for p in setup.pressures for x in bench().left(p)]
    assert len(first.journal.runs) == 4 and len(plan) == 10  # 4 arms x 2, then 3 arms x 2
    assert {(a, p, r) for a, p, r in done}.isdisjoint({(a, p, r) for p, r, a, _ in plan})
    started.clear()
    measure.measure(first)
    assert ("infinite", size.whole) in started or all(a != INFINITE for a, _ in started)
    # One server for both policies of ours, told before each run which.
    assert {a for a, _ in started} <= {"stock", "saga", "saga+", "infinite"} and len(started) <= 3 + 2
    told = Counter(p for s in stands for p in s.policies if p.startswith("saga"))
    assert told.keys() == {"saga", "saga+"} and told.total() in (8, 9)  # the run that broke off, too, if it was ours
    whole = bench()
    assert len(whole.journal.runs) == 14 and not any(whole.left(p) for p in setup.pressures)
    assert len(whole.journal.sessions) == 2  # two starts, each with its commit and machine

    result = {"setup": whole.journal.setup, "starts": whole.journal.sessions,
              "levels": judge.judge(setup, whole.journal.runs)}
    for level in result["levels"]:
        assert list(level["arms"]) == ["stock", "saga", "saga+", "infinite"]
        free = level["arms"]["infinite"]
        assert free["figures"]["recomputed_tokens"] == 0 and free["figures"]["in_time"] == 1.0
        means = [np.mean(list(level["arms"][a]["each"].values())) for a in ("infinite", "stock")]
        assert free["ratios"]["tct_mean_s"]["ratio"] == pytest.approx(means[0] / means[1], rel=0.01)  # rounded to .1 ms
        assert all(set(a["tenants"]) == {"one", "two"} and a["repeats"] == 2 for a in level["arms"].values())
        stock = level["arms"]["stock"]
        service = sum(t["recomputed_tokens"] for t in stock["tenants"].values())
        assert service == pytest.approx(stock["figures"]["recomputed_tokens"])
        assert stock["figures"]["oversubscription"] > 0 and stock["ratios"] == {}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{show.BEGIN}\nlast time\n{show.END}\nafter\n")
    show.update_markdown(page, result)
    show.update_markdown(page, result)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "last time" not in text
    assert text.count("| saga+ |") == 2 * 3 and text.count("| none | infinite |") == 2 * 3
    show.picture(result, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="once each"):
        show.update_markdown(tmp_path / "journal.jsonl", result)


def test_the_order_of_the_arms_is_drawn_anew_and_is_the_same_after_a_restart(tmp_path):
    setup = Setup(repeats=6)
    bench = measure.Bench(setup, [], None, tmp_path, tmp_path, Journal(tmp_path / "j", {}), Console(quiet=True), {})  # type: ignore[arg-type]
    left = bench.left(1.4)
    orders = [tuple(a for r, a, _ in left if r == k) for k in range(6)]
    assert all(sorted(o) == sorted(ARMS) for o in orders) and len(set(orders)) > 1
    assert bench.left(1.4) == left
    assert all(a != INFINITE for _, a, _ in bench.left(2.5)) and len(bench.left(2.5)) == 6 * (len(ARMS) - 1)


def test_a_run_with_a_failed_request_is_counted_and_left_out(found):
    trace = draw(found, SETUP, 0)
    rows = {}
    for r, fails in ((0, None), (1, lambda n, body: 500 if n == 5 else None)):
        for arm in ("stock", "saga+"):
            with Stand(FakeServer(block=BLOCK, fail=fails if arm == "saga+" else None)) as s:
                shown, m = play(SETUP, arm, trace, s.url, f"{r}/")
            rows[arm, 1.5, r] = line(SETUP, arm, 1.5, r, 0, 64, trace, m, shown)
    assert rows["saga+", 1.5, 1]["failed"] == 1 and "made to fail" in rows["saga+", 1.5, 1]["errors"][0]
    arm = judge.judge(SETUP, rows)[0]["arms"]["saga+"]
    assert (arm["repeats"], arm["failed_runs"]) == (1, 1)
    assert next(c for c in show.rows({"levels": judge.judge(SETUP, rows)}) if c[1] == "saga+")[-1] == "1 (1 failed)"


@pytest.mark.parametrize(("given", "message"), [
    (["--arms", "stock,sage"], "no arm named 'sage'; choose one of: saga"),
    (["--arms", "saga+,saga"], "lacks stock"),
    (["--pressures", "1.4,x"], "are no numbers"),
    (["--sessions", "7"], "cannot share evenly"),
    (["--repeats", "0"], "at least 1"),
])
def test_wrong_flags_are_told(given, message):
    with pytest.raises(UserError, match=message):
        chosen(parser("serving_gain.py").parse_args(given))
