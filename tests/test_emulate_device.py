"""An emulated device without vLLM: its timeline, what a batch costs, what is answered, faults, settings, refusals."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from saga_rl.errors import UserError
from saga_rl.runtime.config import emulated as emulation
from saga_rl.runtime.config.emulated import Settings
from saga_rl.runtime.emulate import faults, plugin
from saga_rl.runtime.emulate.answers import FILLERS, FIRST_FILLER, Answer, allowed
from saga_rl.runtime.emulate.batch import Batch, batch_of
from saga_rl.runtime.emulate.device import Device
from saga_rl.runtime.emulate.faults import Fault, parse
from saga_rl.runtime.emulate.offload import Link
from saga_rl.runtime.emulate.refusals import REAL_GPU, refuse, refuse_flags
from saga_rl.runtime.emulate.shapes import PROFILE_OF, SHAPES, write_model
from saga_rl.sim.cost.profile import CostProfile, load_profile, profile_names

PROFILE = CostProfile("unit", base_s=0.01, per_prefill_token_s=1e-4, per_kv_token_s=1e-7, per_seq_s=1e-3,
                      per_attn_s=1e-8, per_context_s=1e-7)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def device(scale: float = 1.0, profile: CostProfile = PROFILE) -> tuple[Device, Clock]:
    clock = Clock()
    return Device(profile, scale, clock, clock.sleep), clock


# ---------------------------------------------------------------------- what a batch costs
requests = st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 100_000), st.booleans()), min_size=1, max_size=40)


@pytest.mark.parametrize("name", ["unit", *profile_names()])
def test_a_batch_costs_what_the_simulator_says_of_the_same_requests(name):
    """By the formula in words: base + table + prefill, attention, context, KV and sequences, each times its rate."""
    profile = PROFILE if name == "unit" else load_profile(name)
    dev, _ = device(profile=profile)

    @settings(max_examples=30, deadline=None)
    @given(requests)
    def check(given_: list[tuple[int, int, bool]]) -> None:
        decodes = [c for n, c, decode in given_ if decode and n == 1]
        chunks = [(n, c) for n, c, decode in given_ if not (decode and n == 1)]
        tokens = sum(n for n, _ in chunks) + len(decodes)
        table = 0.0
        if profile.batch_tokens:
            x, y = profile.batch_tokens, profile.batch_s
            k = min(max(int(np.searchsorted(x, tokens)), 1), len(x) - 1)
            table = y[k - 1] + (y[k] - y[k - 1]) / (x[k] - x[k - 1]) * (tokens - x[k - 1])
        expected = (profile.base_s + table + profile.per_prefill_token_s * sum(n for n, _ in chunks)
                    + profile.per_attn_s * sum(n * (c + n / 2) for n, c in chunks)
                    + profile.per_context_s * sum(c for _, c in chunks)
                    + profile.per_kv_token_s * sum(decodes) + profile.per_seq_s * len(decodes))
        batch = batch_of(given_)
        assert dev.seconds(batch) == pytest.approx(expected, rel=1e-9)
        assert dev.seconds(batch) == profile.seconds(batch.prefill, batch.pairs, batch.context, batch.kv_read,
                                                     batch.decoding)

    check()


def test_a_chunk_of_one_token_is_no_decode():
    assert batch_of([(1, 50, False)]) == Batch(prefill=1, pairs=50.5, context=50)
    assert batch_of([(1, 50, True)]) == Batch(kv_read=50, decoding=1)


# ---------------------------------------------------------------------- the timeline
work = st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 3000), st.integers(0, 50)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(work, st.floats(0.1, 50))
def test_work_is_done_in_order_one_after_the_other_and_none_is_lost(given_, scale):
    dev, clock = device(scale)
    ends, spent = [], 0.0
    for wait, prefill, decoding in given_:
        clock.now += wait
        batch = Batch(prefill=prefill, decoding=decoding)
        before = max(clock.now, ends[-1] if ends else 0.0)
        ends.append(dev.submit(batch))
        took = PROFILE.seconds(prefill=prefill, decoding=decoding)
        spent += took
        assert ends[-1] - before == pytest.approx(took / scale, rel=1e-6, abs=1e-9)  # starts when the last is done
    assert ends == sorted(ends) and ends[-1] == dev.free_at
    assert dev.busy_s == pytest.approx(spent) and dev.batches == len(given_)


@settings(max_examples=50, deadline=None)
@given(work, st.floats(0.1, 50))
def test_a_time_scale_changes_the_clock_and_nothing_else(given_, scale):
    """The same work at the same seconds of the device ends at the same seconds of the device."""
    def ends(factor: float) -> list[float]:
        dev, clock = device(factor)
        out = []
        for wait, prefill, decoding in given_:
            clock.now += wait / factor
            out.append((dev.submit(Batch(prefill=prefill, decoding=decoding)) - 100.0) * factor)
        return out

    assert ends(scale) == pytest.approx(ends(1.0), rel=1e-6, abs=1e-6)


def test_waiting_is_until_then_and_never_for_what_is_over():
    dev, clock = device()
    dev.wait_until(clock.now - 1.0)
    assert clock.now == 100.0
    dev.wait_until(20_000.0)  # longer than one sleep
    assert clock.now == 20_000.0


# ---------------------------------------------------------------------- faults
@pytest.mark.parametrize(("text", "fault"), [
    ("hang", Fault("hang")), ("stall:5", Fault("stall", 5.0)), ("slow:0.5@7", Fault("slow", 0.5, 7)),
    ("die@30#1", Fault("die", token=30, engine=1)), ("stall:2#0", Fault("stall", 2.0, engine=0)),
])
def test_faults_are_read(text, fault):
    found = parse(text)
    assert (found.kind, found.token, found.engine) == (fault.kind, fault.token, fault.engine)
    assert found.amount == fault.amount or (math.isnan(found.amount) and math.isnan(fault.amount))


@pytest.mark.parametrize("text", ["", "explode", "die@", "stall", "slow:0", "slow:-1", "stall:1.2.3", "stall:nan",
                                  "die x", "die@1.5", "die#x", "hang@2@3"])
def test_what_is_no_fault_is_refused_with_the_cause(text):
    with pytest.raises(ValueError, match=r"is no fault|lacks an amount"):
        parse(text)


def test_a_device_that_slows_down_and_stalls_is_late_by_exactly_that():
    dev, _ = device(scale=2.0)
    took = PROFILE.seconds(prefill=100)
    assert dev.submit(Batch(prefill=100)) == pytest.approx(100 + took / 2)
    dev.faults.happen(Fault("slow", 3.0))
    assert dev.submit(Batch(prefill=100)) == pytest.approx(100 + 4 * took / 2)
    dev.faults.happen(Fault("slow", 1.0))
    dev.faults.happen(Fault("stall", 5.0))
    assert dev.submit(Batch(prefill=100)) == pytest.approx(100 + (5 * took + 5.0) / 2)
    assert dev.submit(Batch(prefill=100)) == pytest.approx(100 + (6 * took + 5.0) / 2)  # once
    assert dev.busy_s == pytest.approx(6 * took)  # standing still is not computing


def test_a_device_that_hangs_never_finishes_again():
    dev, _ = device()
    done = dev.submit(Batch(prefill=1))
    dev.faults.happen(Fault("hang"))
    assert math.isfinite(done) and dev.submit(Batch(prefill=1)) == dev.submit(Batch(prefill=1)) == math.inf


def test_a_device_that_dies_ends_its_process_at_once(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    dev, _ = device()
    with pytest.raises(SystemExit) as e:
        dev.faults.happen(Fault("die"))
    assert e.value.code == faults.DIED == 70


# ---------------------------------------------------------------------- answers
def answer(extra: Any = None, ignore_eos: bool = False, eos: int | None = 2, vocab: int = 2048,
           prompt: tuple[int, ...] = (5, 6, 7)) -> Answer:
    params = SimpleNamespace(extra_args=extra, ignore_eos=ignore_eos)
    return Answer(prompt, params, vocab, eos, lambda text: [ord(c) for c in text])


def first(a: Answer, n: int) -> list[int]:
    return [a.token(i) for i in range(n)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2047), max_size=20))
def test_an_answer_is_what_was_prescribed_and_then_ends(ids):
    assert first(answer({"saga_answer_ids": ids}), len(ids) + 3) == [*ids, 2, 2, 2]
    on = first(answer({"saga_answer_ids": ids}, ignore_eos=True), len(ids) + 3)
    assert on[:len(ids)] == ids and all(FIRST_FILLER <= t < FIRST_FILLER + FILLERS for t in on[len(ids):])


def test_a_text_is_encoded_and_ids_come_first():
    assert first(answer({"saga_answer": "hi"}), 3) == [104, 105, 2]
    assert first(answer({"saga_answer": "hi", "saga_answer_ids": [9]}), 2) == [9, 2]


@pytest.mark.parametrize("extra", [{"saga_answer_ids": [1, 4096]}, {"saga_answer_ids": [-1]}, {"saga_answer_ids": 7},
                                   {"saga_answer_ids": ["x"]}, {"saga_answer_ids": None},
                                   {"saga_answer_ids": [math.inf]}, {"saga_fault": "explode"},
                                   {"saga_answer": "\u20ac" * 2}, {}, None])
def test_what_cannot_be_read_is_no_prescription_and_no_failure(extra):
    a = answer(extra)
    assert first(a, 50) == first(answer(None), 50) and a.fault is None
    assert all(FIRST_FILLER <= t < FIRST_FILLER + FILLERS for t in first(a, 500))


def test_filler_is_the_same_for_the_same_prompt_and_differs_between_prompts():
    assert first(answer(), 40) == first(answer(), 40)
    assert len({tuple(first(answer(prompt=(5, k)), 40)) for k in range(20)}) > 10
    assert all(t < 64 for t in first(answer(vocab=64), 100))


def test_a_model_without_an_end_goes_on():
    assert first(answer({"saga_answer_ids": [9]}, eos=None), 2)[1] >= FIRST_FILLER


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3), st.sets(st.integers(0, 127)), st.integers(0, 127))
def test_a_grammar_rules_over_the_token(spare, may, token):
    bits = np.zeros(128 + 32 * spare, np.uint8)
    bits[list(may)] = 1
    mask = np.packbits(bits, bitorder="little").view(np.int32)
    assert allowed(token, mask) == (token if token in may or not may else min(may))


# ---------------------------------------------------------------------- settings
def test_settings_go_through_the_variable(tmp_path):
    given_ = Settings("h100-llama3.1-8b-tp1", time_scale=2.5, kv_tokens=9000, pcie_bytes_per_s=1e9)
    assert emulation.from_environment({emulation.EMULATE: given_.value()}) == given_
    assert emulation.read(" h100-llama3-70b-tp4 ") == Settings("h100-llama3-70b-tp4")
    assert emulation.from_environment({}) is emulation.from_environment({emulation.EMULATE: " "}) is None
    PROFILE.save(tmp_path / "mine.json")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert Path(emulation.read("mine.json").profile) == (tmp_path / "mine.json").resolve()
    finally:
        os.chdir(here)


@pytest.mark.parametrize(("text", "says"), [
    ("h100-lama3.1-8b-tp1", "h100-llama3.1-8b-tp1"),
    ("no/such.json", "no/such.json"),
    ("{", "is not JSON"),
    ("{}", "names no profile"),
    ('{"profile": 1}', "names no profile"),
    ('{"profile": "h100-llama3.1-8b-tp1", "time_scal": 2}', "time_scal"),
    ('{"profile": "h100-llama3.1-8b-tp1", "time_scale": 0}', "--time-scale: is 0"),
    ('{"profile": "h100-llama3.1-8b-tp1", "time_scale": "2"}', "--time-scale: is '2'"),
    ('{"profile": "h100-llama3.1-8b-tp1", "time_scale": 1e9}', "at most 1000"),
    ('{"profile": "h100-llama3.1-8b-tp1", "time_scale": NaN}', "--time-scale: is nan"),
    ('{"profile": "h100-llama3.1-8b-tp1", "kv_tokens": -1}', "--kv-tokens: is -1"),
    ('{"profile": "h100-llama3.1-8b-tp1", "kv_tokens": 1.5}', "--kv-tokens: is 1.5"),
    ('{"profile": "h100-llama3.1-8b-tp1", "kv_tokens": true}', "--kv-tokens: is True"),
    ('{"profile": "h100-llama3.1-8b-tp1", "pcie_bytes_per_s": -1}', "--pcie-bytes-per-s: is -1"),
])
def test_settings_that_cannot_be_emulated_are_told_by_name(text, says):
    with pytest.raises(UserError) as e:
        emulation.read(text)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_what_is_emulated_is_said_as_such():
    said = Settings("h100-llama3-70b-tp4", 2.0).described()
    assert (said["device"], said["gpus"], said["time_scale"]) == ("emulated", 4, 2.0)
    assert said["kv_tokens"] == load_profile("h100-llama3-70b-tp4").kv_tokens
    assert said["pcie_bytes_per_s"] == 4 * emulation.PCIE_BYTES_PER_S


def test_vllm_takes_the_device_for_emulated_only_where_that_was_asked_for(monkeypatch):
    monkeypatch.delenv(emulation.EMULATE, raising=False)
    assert plugin.platform() is None
    monkeypatch.setenv(emulation.EMULATE, "h100-llama3.1-8b-tp1")
    assert plugin.platform() == plugin.PLATFORM


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize("flag", [*REAL_GPU, "--gpu-memory-utilization=0.9"])
def test_flags_that_ask_for_a_real_gpu_are_refused(flag):
    with pytest.raises(UserError, match="serves without one"):
        refuse_flags(["--max-num-seqs", "4", flag, "1"])
    refuse_flags(["--max-num-seqs", "4", "--port", "1"])


def configuration(**changed: Any) -> Any:
    """As much of vLLM's configuration as is looked at; `part__field=value` changes it."""
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(pipeline_parallel_size=1, decode_context_parallel_size=1,
                                        tensor_parallel_size=1),
        model_config=SimpleNamespace(runner_type="generate", quantization=None, max_model_len=4096),
        cache_config=SimpleNamespace(cache_dtype="auto", num_gpu_blocks_override=None, block_size=16,
                                     kv_cache_memory_bytes=None),
        speculative_config=None, kv_transfer_config=None)
    for path, value in changed.items():
        part, _, name = path.rpartition("__")
        setattr(getattr(config, part) if part else config, name, value)
    return config


@pytest.mark.parametrize(("changed", "says"), [
    ({"speculative_config": 1}, "--speculative-config: cannot be emulated"),
    ({"parallel_config__pipeline_parallel_size": 2}, "--pipeline-parallel-size: is 2"),
    ({"parallel_config__decode_context_parallel_size": 2}, "--decode-context-parallel-size: is 2"),
    ({"parallel_config__tensor_parallel_size": 2}, "is of 4 GPUs; give 4"),
    ({"cache_config__cache_dtype": "fp8"}, "--kv-cache-dtype: is fp8"),
    ({"model_config__runner_type": "pooling"}, "--runner: is pooling"),
    ({"model_config__quantization": "awq"}, "quantization: is awq"),
    ({"model_config__max_model_len": 131072, "cache_config__num_gpu_blocks_override": 100}, "pool holds 1,600 tokens"),
    ({"kv_transfer_config": SimpleNamespace(kv_connector="NixlConnector")}, "asks for NixlConnector"),
])
def test_a_configuration_that_cannot_be_honoured_is_refused(changed, says):
    chosen = Settings("h100-llama3-70b-tp4")
    refuse(configuration(), chosen)
    refuse(configuration(parallel_config__tensor_parallel_size=4), chosen)
    with pytest.raises(UserError) as e:
        refuse(configuration(**changed), chosen)
    assert says in str(e.value)


# ---------------------------------------------------------------------- copies, models
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=20), st.floats(1e6, 1e11))
def test_copies_in_one_direction_take_turns(given_, rate):
    clock = Clock()
    link = Link(rate, clock)
    before = 0.0
    for wait, size in given_:
        clock.now += wait
        start, end = link.copy(size)
        assert start == max(clock.now, before)
        assert end - start == pytest.approx(size / rate, rel=1e-6, abs=1e-6)
        before = end
    assert link.bytes == sum(size for _, size in given_)


PUBLISHED = {"llama3.1-8b": 131_072, "llama3-70b": 327_680, "qwen3-32b": 262_144, "gemma3-27b": 507_904,
             "qwen3-next-80b": 98_304}
"""Bytes of KV a token in 16 bits, if all layers had keys and values: 2 x layers x KV heads x head size x 2."""


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_model_folder_has_the_shape_and_a_tokenizer_and_no_weights(shape, tmp_path):
    folder = write_model(shape, tmp_path / "m", window=4096)
    config = json.loads((folder / "config.json").read_text())
    assert (2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
            == PUBLISHED[shape])
    assert config["max_position_embeddings"] == 4096 and config["eos_token_id"] == 2
    names = {p.name for p in folder.iterdir()}
    assert "tokenizer.json" in names and not [n for n in names if "safetensors" in n]
    load_profile(PROFILE_OF[shape])


def test_a_model_folder_is_not_written_over_and_unknown_shapes_are_told(tmp_path):
    (tmp_path / "x").write_text("mine")
    for bad, window, says in ((tmp_path, None, "is not an empty folder"), (tmp_path / "x", None, "is not an empty"),
                              (tmp_path / "m", 100, "at least 1024")):
        with pytest.raises(UserError, match=says):
            write_model("llama3.1-8b", bad, window)
    with pytest.raises(UserError, match=r"llama3\.1-8b"):
        write_model("llama3.1-8", tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == {"x"}


def test_the_command_says_how_to_serve_what_it_wrote(tmp_path):
    import typer

    from saga_rl.cli.emulate import register

    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["emulate", "model", "qwen3-32b", "-o", str(tmp_path / "m"), "--window", "2048"])
    assert done.exit_code == 0 and "--emulate h100-qwen3-32b-tp2" in " ".join(done.output.split())


def test_a_forked_process_keeps_no_socket_that_clients_come_to():
    code = """
import os, socket, sys
from saga_rl.runtime.emulate.forked import close_servers_in_children
close_servers_in_children()
listens, plain, bound = socket.create_server(("127.0.0.1", 0)), socket.socket(), socket.socket()
bound.bind(("127.0.0.1", 0))
connected = socket.create_connection(listens.getsockname())
accepted = listens.accept()[0]
def open_ones(*sockets):
    out = []
    for s in sockets:
        try:
            os.fstat(s.fileno())
            out.append(s)
        except OSError:
            pass
    return out
if os.fork() == 0:
    os._exit(7 if open_ones(listens, bound, plain, connected, accepted) == [plain, connected] else 1)
status = os.waitstatus_to_exitcode(os.wait()[1])
socket.create_connection(listens.getsockname(), 5).close()
sys.exit(status)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 7
