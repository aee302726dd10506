"""The cost model: its form, its files, the fit, the profiles that ship, and what a model leaves of a GPU's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_rl.errors import UserError
from saga_rl.sim.cost.fit import even_weights, hats, nnls, region_errors, relative_fit
from saga_rl.sim.cost.models import GIB, MODELS, from_config, model_shape, pool
from saga_rl.sim.cost.profile import RANGES, CostProfile, load_profile, profile_names

FIT = Path(__file__).resolve().parents[1] / "benchmarks" / "profiles" / "fit.py"
FITTED = [n for n in profile_names() if load_profile(n).provenance.get("kind") == "fitted"]
ARGUMENTS = ("prefill", "pairs", "context", "kv_read", "decoding")

positive = st.floats(1e-9, 1.0)
tables = st.lists(st.tuples(st.floats(1, 500), st.floats(0, .1)), max_size=6).filter(lambda t: len(t) != 1).map(
    lambda pieces: (np.cumsum([dx for dx, _ in pieces]), np.cumsum([dy for _, dy in pieces])))


@st.composite
def profiles(draw) -> CostProfile:
    tokens, seconds = draw(tables)
    # Whatever the first piece's slope, it must not reach below 0 at 0 tokens.
    lift = float(seconds[1]) * float(tokens[0] / (tokens[1] - tokens[0])) + 1e-9 if len(tokens) else 0.0
    return CostProfile("any", draw(positive), draw(positive), draw(positive), draw(positive), draw(positive),
                       per_context_s=draw(positive), batch_tokens=tuple(map(float, tokens)),
                       batch_s=tuple(float(s + lift) for s in seconds))


points = st.fixed_dictionaries({a: st.floats(0, 1e4) for a in ARGUMENTS})


def by_hand(p: CostProfile, prefill, pairs, context, kv_read, decoding) -> float:
    table = 0.0
    if p.batch_tokens:
        x, y = np.array(p.batch_tokens), np.array(p.batch_s)
        at = prefill + decoding
        k = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
        table = y[k - 1] + (y[k] - y[k - 1]) * (at - x[k - 1]) / (x[k] - x[k - 1])
    return (p.base_s + table + p.per_prefill_token_s * prefill + p.per_attn_s * pairs + p.per_context_s * context
            + p.per_kv_token_s * kv_read + p.per_seq_s * decoding)


@settings(deadline=None)
@given(profiles(), points)
def test_the_compiled_function_computes_the_form(p: CostProfile, at: dict):
    assert p.seconds(**at) == pytest.approx(by_hand(p, **at), rel=1e-9)


@settings(deadline=None)
@given(profiles(), points, st.sampled_from(ARGUMENTS), st.floats(0, 1e4))
def test_more_work_never_takes_less_time(p: CostProfile, at: dict, argument: str, more: float):
    assert p.seconds(**at | {argument: at[argument] + more}) >= p.seconds(**at) * (1 - 1e-12)


@settings(deadline=None)
@given(profiles().filter(lambda p: p.batch_tokens))
def test_the_table_is_exact_at_its_knots_and_has_no_jumps(p: CostProfile):
    rest = p.base_s
    for tokens, seconds in zip(p.batch_tokens, p.batch_s, strict=True):
        assert p.seconds(decoding=tokens) == pytest.approx(rest + p.per_seq_s * tokens + seconds)
        left, right = p.seconds(decoding=np.nextafter(tokens, 0)), p.seconds(decoding=np.nextafter(tokens, np.inf))
        assert left == pytest.approx(right, rel=1e-9)


def test_the_prefill_rate_of_a_linear_profile_is_its_constant():
    p = CostProfile("linear", .02, 1e-4, 1e-7)
    assert p.prefill_tokens_per_s == pytest.approx(1e4)
    assert load_profile("a100-llama3-70b-tp4").prefill_tokens_per_s == pytest.approx(6000)
    slower = CostProfile("pairs", .02, 1e-4, 1e-7, per_attn_s=1e-8, max_batched_tokens=1000)
    assert slower.prefill_tokens_per_s == pytest.approx(1000 / (.1 + 1e-8 * 1000 ** 2 / 2))


def test_what_lies_outside_the_fit_is_said():
    p = CostProfile("mine", .02, 1e-4, 1e-7, fitted={"decode_seqs": (4, 64), "context_tokens": (256, 15360)})
    assert p.outside({"decode_seqs": 64, "context_tokens": 0, "prefill_tokens": 1e9}) == []
    assert p.outside({"context_tokens": 100_000, "decode_seqs": 2}) == [
        "mine: 100,000 tokens of context before a prefill chunk, fitted up to 15,360: extrapolated",
        "mine: 2 sequences decoded in an iteration, fitted from 4: extrapolated"]
    with pytest.raises(UserError, match="decode_seqs"):
        p.outside({"decode_sequences": 1})


@settings(deadline=None, max_examples=30)
@given(profiles())
def test_a_profile_survives_its_file(tmp_path_factory, p: CostProfile):
    path = tmp_path_factory.mktemp("p") / "p.json"
    p.save(path)
    assert load_profile(path) == p


GOOD = asdict(CostProfile("good", .02, 1e-4, 1e-7, batch_tokens=(1, 8), batch_s=(.01, .02),
                          fitted={"decode_seqs": (1, 8)}))


@pytest.mark.parametrize(("change", "message"), [
    ({"base_s": 0}, "base_s: is 0; give a number > 0"),
    ({"per_context_s": -1e-9}, "per_context_s: is -1e-09; give a finite number >= 0"),
    ({"per_seq_s": float("nan")}, "per_seq_s: is nan"),
    ({"per_attn_s": True}, "per_attn_s: is True"),
    ({"per_prefill_token_s": 0, "batch_tokens": [], "batch_s": []}, "prefill must take time"),
    ({"batch_tokens": [1, 8, 8], "batch_s": [0, 1, 2]}, "batch_tokens: does not increase"),
    ({"batch_tokens": [1, 8, 9]}, "batch_s: has 2 numbers for 3 batch_tokens"),
    ({"batch_tokens": [1], "batch_s": [1]}, "batch_tokens: has one knot"),
    ({"batch_s": [.02, .01]}, "batch_s: falls"),
    ({"batch_tokens": [100, 101], "batch_s": [0, 1]}, "below 0 at 0 tokens"),
    ({"batch_s": "fast"}, "batch_s: is 'fast'"),
    ({"fitted": {"decode_seqs": [8, 1]}}, "fitted: decode_seqs: is [8, 1]"),
    ({"fitted": {"decodes": [1, 8]}}, "no"),
    ({"name": 3}, "name: is 3"),
    ({"provenance": "me"}, "provenance: is 'me'"),
    ({"bse_s": 1}, "base_s"),
])
def test_a_bad_file_is_refused_in_one_line(tmp_path, change: dict, message: str):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError) as e:
        load_profile(path)
    assert message in str(e.value) and "\n" not in str(e.value) and "bad.json" in str(e.value)


def test_files_from_before_the_table_are_read(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"name": "old", "base_s": .1, "per_prefill_token_s": 1e-3, "per_kv_token_s": 1e-6,
                                "per_seq_s": 0.0, "kv_tokens": 1000, "max_batched_tokens": 512, "provenance": {}}))
    p = load_profile(path)
    assert p.seconds(100, 5000, 10, 1000, 3) == pytest.approx(.1 + .1 + 1e-3)
    assert p.fitted == {} and p.outside(dict.fromkeys(RANGES, 1e12)) == []


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2 ** 32 - 1))
def test_least_squares_meet_the_conditions_of_a_constrained_minimum(seed: int):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(30, 8)) * 10.0 ** rng.integers(-6, 6, 8), rng.normal(size=30)
    x = nnls(a, b)
    gradient = a.T @ (a @ x - b) / np.linalg.norm(a, axis=0)
    assert (x >= 0).all()
    assert (gradient >= -1e-8).all(), "a constant at 0 would lower the error if it grew"
    assert (np.abs(gradient[x > 0]) <= 1e-8).all(), "a free constant is not at its best"


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2 ** 32 - 1))
def test_the_fit_gives_back_the_profile_that_made_the_times(seed: int):
    rng = np.random.default_rng(seed)
    knots = np.array([1, 16, 64, 256, 1024, 4096])
    true = np.concatenate([[.01], rng.uniform(0, .02, 5), rng.uniform(0, 1, 4) * [1e-8, 1e-6, 1e-7, 1e-4]])
    n = 300
    prefill = rng.choice([0, 1], n) * np.exp(rng.uniform(0, 8, n))
    context = rng.uniform(0, 2e4, n) * (prefill > 0)
    decoding = rng.integers(0, 256, n)
    kv = decoding * rng.uniform(0, 1e4, n)
    tokens = np.maximum(prefill + decoding, 1)
    rows = np.column_stack([hats(tokens, knots), prefill * (context + prefill / 2), context, kv, decoding])
    seconds = rows @ true
    x = relative_fit(rows, seconds)
    assert x == pytest.approx(true, rel=1e-4, abs=1e-10)
    p = CostProfile("back", 1e-9, 0.0, x[8], x[9], x[6], per_context_s=x[7], batch_tokens=tuple(map(float, knots)),
                    batch_s=tuple(np.cumsum(x[:6])))
    for i in range(0, n, 10):
        at = (tokens[i] - decoding[i], rows[i, 6], context[i], kv[i], decoding[i])
        assert p.seconds(*at) == pytest.approx(seconds[i], rel=1e-4)


def test_every_region_has_the_same_say_and_its_own_error():
    regions = ["few"] * 2 + ["many"] * 8
    assert even_weights(regions) == pytest.approx([.25] * 2 + [1 / 16] * 8)
    # One constant cannot serve both; with even weights the few count as much as the many.
    x = relative_fit(np.ones((10, 1)), np.array([1.0] * 2 + [2.0] * 8), even_weights(regions))
    assert x[0] == pytest.approx((.5 + .25) / (.5 + .125))
    errors = region_errors(regions, np.full(10, 1.5), np.array([1.0] * 2 + [2.0] * 8))
    assert errors["few"] == {"points": 2, "median": .5, "p95": .5, "bias": .5}
    assert errors["many"]["bias"] == pytest.approx(-.25)


def test_fitted_and_assumed_profiles_ship():
    assert load_profile("a100-llama3-70b-tp4").provenance["kind"] == "assumed"
    assert {"h100-llama3.1-8b-tp1", "a100-llama3.1-8b-tp1", "h100-llama3-70b-tp4", "a100-llama3.0-70b-tp4",
            "h100-qwen3-32b-tp2", "a100-qwen3-32b-tp2"} <= set(FITTED)


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_is_whole(name: str):
    p = load_profile(name)
    assert p.name == name and p.prefill_tokens_per_s > 0
    at = dict.fromkeys(ARGUMENTS, 10.0)
    for argument in ARGUMENTS:
        steps = [p.seconds(**at | {argument: v}) for v in np.geomspace(1, 1e6, 200)]
        assert (np.diff(steps) >= 0).all()
    if name in FITTED:
        where = p.provenance
        assert set(where["error_by_region"]) == {"prefill", "prefill with context", "decode, small batch",
                                                 "decode, large batch", "mixed"}
        assert all(s["licence"] and s["data"] for s in where["sources"]) and where["assumptions"]
        assert set(p.fitted) == set(RANGES) and all(low < high for low, high in p.fitted.values())
        shape, tp = model_shape(where["model"]), where["tp"]
        assert p.kv_tokens == pool(shape, 80, tp).tokens
        # No GPU reads its weights and KV faster than its memory: 2.04 and 3.35 TB/s (the makers' figures).
        bandwidth = {"A100": 2.04e12, "H100": 3.35e12}[where["gpu"].split("-")[0]]
        assert p.seconds(decoding=1) > shape.parameters * 2 / tp / bandwidth * .9
        assert p.per_kv_token_s > shape.kv_bytes_per_token(tp) / bandwidth * .9
        text = json.dumps(where)
        assert "/tmp" not in text and "/root" not in text and "/home" not in text


def test_the_committed_profiles_are_what_the_script_writes(tmp_path, shared_data):
    done = subprocess.run([sys.executable, str(FIT), "--data", str(shared_data / "gpu"), "--out", str(tmp_path)],
                          capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for name in FITTED:
        written, shipped = load_profile(tmp_path / f"{name}.json"), load_profile(name)
        # The last digits may differ between processors' linear algebra.
        assert written.vector() == pytest.approx(shipped.vector(), rel=1e-4, abs=1e-13), name
        assert written.provenance["assumptions"] == shipped.provenance["assumptions"]


def test_the_fit_refuses_a_wrong_name_before_it_works(tmp_path):
    done = subprocess.run([sys.executable, str(FIT), "--data", str(tmp_path), "--only", "h100-gpt"],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "h100-llama3-70b-tp4" in done.stderr and len(done.stderr.splitlines()) == 1


def test_kv_bytes_and_pools_are_the_published_ones():
    llama = MODELS["llama3-70b"]
    assert llama.kv_bytes_per_token() == 327_680
    assert [llama.kv_bytes_per_token(tp) for tp in (4, 8, 16)] == [81_920, 40_960, 40_960]
    assert llama.kv_bytes_per_token(4, 1) == 40_960
    assert llama.parameters == 70_553_706_496
    assert MODELS["llama3.1-8b"].parameters == 8_030_261_248
    assert MODELS["qwen3-32b"].parameters == 32_762_123_264
    # The SAGA paper: about 470K tokens on four A100-80GB.
    assert pool(llama, 80, 4).tokens == pytest.approx(470_000, rel=.01)
    room = pool(llama, 80, 4)
    assert room.tokens % 16 == 0
    assert room.tokens * room.kv_per_token <= room.usable - room.weights - room.reserve
    assert (room.tokens + 16) * room.kv_per_token > room.usable - room.weights - room.reserve
    assert pool(llama, 80, 4, weights_gib=70).tokens > room.tokens
    with pytest.raises(UserError, match="leaves no room"):
        pool(llama, 80, 1)
    with pytest.raises(UserError, match="does not divide"):
        pool(llama, 80, 3)
    assert room.usable == 80 * GIB * .9


LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
         "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16"}


def test_a_config_gives_the_shape(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert from_config(path).parameters == MODELS["llama3.1-8b"].parameters
    assert model_shape(tmp_path).kv_bytes_per_token() == MODELS["llama3.1-8b"].kv_bytes_per_token()
    path.write_text(json.dumps({"text_config": LLAMA | {"tie_word_embeddings": True}}))
    assert from_config(path).parameters == MODELS["llama3.1-8b"].parameters - 128256 * 4096
    path.write_text(json.dumps(LLAMA | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UserError, match="--weights-gib"):
        pool(from_config(path), 80)
    assert pool(from_config(path), 80, weights_gib=8).tokens > pool(MODELS["llama3.1-8b"], 80).tokens
    # Qwen3-30B-A3B: 30,532,122,624 parameters by its maker's index.
    path.write_text(json.dumps({
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_hidden_layers": 48, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_experts": 128, "vocab_size": 151936, "torch_dtype": "bfloat16", "sliding_window": None,
        "mlp_only_layers": []}))
    assert from_config(path).parameters == 30_532_122_624


@pytest.mark.parametrize(("change", "message"), [
    ({"kv_lora_rank": 512}, "latent attention"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ({"sliding_window": 4096}, "sliding-window"),
    ({"num_hidden_layers": "many"}, "num_hidden_layers: is 'many'"),
    ({"vocab_size": None}, "lacks vocab_size"),
    ({"torch_dtype": "int3"}, "dtype: is 'int3'"),
])
def test_a_config_that_would_be_counted_wrongly_is_refused(tmp_path, change: dict, message: str):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | change))
    with pytest.raises(UserError, match=message):
        from_config(path)


def run_cli(*words: str):
    import typer
    from typer.testing import CliRunner

    from saga_rl.cli.profile import register

    parent = typer.Typer()
    parent.callback()(lambda: None)
    register(parent)
    return CliRunner().invoke(parent, ["profile", *words])


def test_the_commands_list_show_and_size(tmp_path):
    out = tmp_path / "o.json"
    done = run_cli("list", "--json", str(out))
    assert done.exit_code == 0 and {r["name"] for r in json.loads(out.read_text())} == set(profile_names())
    assert all(name in done.stdout for name in profile_names())
    done = run_cli("show", FITTED[0])
    assert done.exit_code == 0 and "Apache-2.0" in done.stdout and "prefill with context" in done.stdout
    done = run_cli("memory", "--model", "llama3-70b", "--tp", "4", "--json", str(out))
    assert done.exit_code == 0 and json.loads(out.read_text())["kv_bytes_per_token"] == 327_680
    assert isinstance(run_cli("memory", "--model", "llama9").exception, UserError)
    assert isinstance(run_cli("show", "h100").exception, UserError)
