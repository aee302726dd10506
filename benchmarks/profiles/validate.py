"""Fitted profiles against what others measured end to end, and the kernel sums against a second set of kernels."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from closed_loop import Loop, closed_loop
from kernels import Instance

from saga_rl.files import must_exist
from saga_rl.sim.cost.fit import nnls, region_errors
from saga_rl.sim.cost.models import ModelShape, pool
from saga_rl.sim.cost.profile import CostProfile

BUDGET = 8192
"""Tokens an iteration in the serving benchmarks: the engines' default; the table does not say."""
FULL = 0.9
"""Runs that would fill more of the pool than this queue for KV: a schedule of tokens alone cannot price them."""
SERVED = {"qwen3-32b": ("Qwen/Qwen3-32B", "vllm"), "llama3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", "trtllm")}
"""What silicon_h100_h200_agg.csv has of our models in bfloat16 on H100, and by which engine."""


def served(data: Path, model: ModelShape, tp: int, at_once: bool = False) -> Iterator[tuple[Loop, float, float, float]]:
    """Schedule of each serving benchmark on H100, and its measured request, first-token and later-token seconds."""
    path, engine = SERVED[model.name]
    room = FULL * pool(model, 80, tp).tokens
    with must_exist(data / "aiconfigurator" / "silicon_h100_h200_agg.csv").open() as f:
        for r in csv.DictReader(f):
            if (r["backend"], r["system"], r["model_path"], r["gemm_quant_mode"], float(r["tp_size"])) != (
                    engine, "h100_sxm", path, "", tp):
                continue
            prompt, answer, clients = int(r["isl"]), int(r["osl"]), int(float(r["batch_size"]))
            if clients * (prompt + answer) <= room:
                ttft, tpot = float(r["silicon_ttft_ms"]) / 1e3, float(r["silicon_tpot_ms"]) / 1e3
                yield (closed_loop(clients, prompt, answer, BUDGET, at_once), ttft + (answer - 1) * tpot, ttft, tpot)


def host_time(found: list[tuple[CostProfile, Loop, float]]) -> tuple[float, float]:
    """Seconds an iteration and seconds a scheduled decode that measured requests take beyond their kernels.

    found: (profile of the kernels alone, schedule, measured seconds of a request).
    """
    rows, missing = [], []
    for profile, loop, measured in found:
        sent, _, done, _ = loop.requests.T
        decodes = np.concatenate([[0.0], np.cumsum(loop.arguments[:, 4])])
        rows.append([float((done - sent).mean()) / measured, float((decodes[done] - decodes[sent]).mean()) / measured])
        missing.append(1 - loop.times(profile)[0] / measured)
    base, sequence = nnls(np.array(rows), np.array(missing))
    return float(base), float(sequence)


def against_serving(data: Path, profile: CostProfile, model: ModelShape, tp: int) -> dict[str, dict[str, Any]]:
    """Errors of a request's time, and of its parts: time to the first token and per later token.

    The parts depend on how the clients' phases lie, which the table does not say: both extremes are given. The time of
    the whole request hardly does.
    """
    engine = {"vllm": "vLLM 0.12", "trtllm": "TensorRT-LLM"}[SERVED[model.name][1]]
    out: dict[str, dict[str, Any]] = {}
    for phases, at_once in (("clients spread", False), ("clients in step", True)):
        found = [(loop.times(profile), times) for loop, *times in served(data, model, tp, at_once)]
        for i, what in enumerate(("request", "first token", "per later token")):
            name = f"{engine} served, {what}, {phases}"
            if found:
                out |= region_errors([name] * len(found), np.array([p[i] for p, _ in found]),
                                     np.array([m[i] for _, m in found]))
    return out


def against_splitwise(data: Path, profile: CostProfile, gpu: str, tp: int) -> dict[str, dict[str, Any]]:
    """Llama-2-70B alone on the machine: prompts of one request, and tokens of batches of up to 64."""
    times = defaultdict(list)
    with must_exist(data / "splitwise" / "data" / "perf_model.csv").open() as f:
        for r in csv.DictReader(f):
            if (r["model"], r["hardware"], int(r["tensor_parallel"])) == ("llama2-70b", f"{gpu}-80gb", tp):
                key = int(r["prompt_size"]), int(r["batch_size"]), int(r["token_size"])
                times[key].append((float(r["prompt_time"]) / 1e3, float(r["token_time"]) / 1e3))
    regions, predicted, measured = [], [], []
    for (prompt, batch, tokens), found in sorted(times.items()):
        if batch == 1:
            regions.append("Splitwise, prompt")
            predicted.append(profile.seconds(prompt, prompt ** 2 / 2))
            measured.append(median(p for p, _ in found))
        regions.append("Splitwise, token")
        predicted.append(profile.seconds(0, 0, 0, batch * (prompt + tokens / 2), batch))
        measured.append(median(t for _, t in found))
    return region_errors(regions, np.array(predicted), np.array(measured)) if regions else {}


def against_llmservingsim(data: Path, instance: Instance) -> dict[str, dict[str, Any]]:
    """Our kernels (not the fit) against LLMServingSim's, H100: products of a layer, attention with cached prefix.

    Its decodes are left out: many are faster than the memory could deliver their KV, so its sizes mean something else.
    """
    name = {"llama3.1-8b": "Llama-3.1-8B", "llama3-70b": "Llama-3.1-70B"}.get(instance.model.name)
    folder = data / "llmservingsim" / "h100" / "meta-llama" / str(name) / f"tp{instance.tp}"
    if name is None or instance.system.gpu != "h100" or not folder.is_dir():
        return {}
    regions, predicted, measured = [], [], []
    products: dict[int, float] = defaultdict(float)
    for r in _gzip_rows(folder / "layers.csv.gz"):
        if r["layer_name"].endswith("_proj"):
            products[int(r["input"])] += int(r["latency(ns)"]) / 1e9
    for tokens in (1, 16, 64, 128, 256, 512, 1024, 2048):
        regions.append("LLMServingSim, products of a layer")
        predicted.append(sum(instance.products(tokens).values()))
        measured.append(products[tokens])
    for r in _gzip_rows(folder / "attention.csv.gz") if (folder / "attention.csv.gz").is_file() else ():
        if r["is_prefill"] == "True":
            regions.append("LLMServingSim, attention of a chunk with context")
            predicted.append(instance.attention.chunk(int(float(r["prefill_chunk_size"])),
                                                      int(float(r["kv_cache_size"]))))
            measured.append(float(r["time_stats.attn_prefill.median"]) / 1e3)
    return region_errors(regions, np.array(predicted), np.array(measured))


def _gzip_rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") as f:
        yield from csv.DictReader(f)


def with_host(profile: CostProfile, base_s: float, per_seq_s: float) -> CostProfile:
    """The profile of the kernels alone, with the host's time added."""
    return replace(profile, base_s=base_s, per_seq_s=profile.per_seq_s + per_seq_s)
