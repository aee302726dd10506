"""Fit the cost profiles that ship with the project to measured GPU kernels.

    python benchmarks/profiles/fit.py --data DIR [--only NAME] [--out DIR]

DIR holds aiconfigurator/, llmservingsim/ and splitwise/. An iteration's seconds are the sum of its kernels
(`kernels.py`) over a grid (`grid.py`); the form of `saga_rl/sim/cost/iteration.py` is fitted to the sums by least
squares on relative error, every region of the grid with the same weight. Prints the error of each region and the error
against other measurements, and writes NAME.json to --out (default: the package's own folder). Deterministic.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from grid import KNOTS, REGIONS, works
from kernels import ELEMENTWISE_A_LAYER, LOGIT_PASSES, Instance
from rich.console import Console
from tables import VLLM, WALKS
from validate import against_llmservingsim, against_serving, against_splitwise, host_time, served, with_host

from saga_rl.errors import run_user_command, unknown_name
from saga_rl.files import check_target
from saga_rl.sim.cost.fit import error_table, even_weights, hats, region_errors, relative_fit
from saga_rl.sim.cost.models import MODELS, RESERVE_GIB, UTILISATION, pool
from saga_rl.sim.cost.profile import CostProfile

PROFILES = {
    "h100-llama3.1-8b-tp1": ("h100", "llama3.1-8b", 1),
    "a100-llama3.1-8b-tp1": ("a100", "llama3.1-8b", 1),
    "h100-llama3-70b-tp4": ("h100", "llama3-70b", 4),
    "a100-llama3.0-70b-tp4": ("a100", "llama3-70b", 4),
    "h100-qwen3-32b-tp2": ("h100", "qwen3-32b", 2),
    "a100-qwen3-32b-tp2": ("a100", "qwen3-32b", 2),
}
BUDGET = {"h100": 8192, "a100": 2048}
"""vLLM's default --max-num-batched-tokens of a server on that GPU."""
HOST_TP = (4, 8)
"""Served Qwen3-32B runs at these sizes give the host's time; those at TP 2, which ships, are left to check it."""
ALONE_S = 1e-9
"""Base seconds of a profile of the kernels alone: a profile needs one above 0."""
DIGITS = 6
SOURCES = [
    {"data": "aiconfigurator (ai-dynamo/aiconfigurator)", "licence": "Apache-2.0",
     "use": "matrix products, attention, all-reduce under vLLM {version}; memory and bandwidth of the GPU; served TTFT "
            "and TPOT (silicon_h100_h200_agg.csv) for the host's time and for validation"},
    {"data": "LLMServingSim (casys-kaist/LLMServingSim)", "licence": "MIT",
     "use": "validation: kernels on H100, among them attention of chunks with a cached prefix"},
    {"data": "Splitwise (Mutinifni/splitwise-sim)", "licence": "MIT", "use": "validation: Llama-2-70B end to end"},
]


def kernel_profile(name: str, instance: Instance, kv_tokens: int, budget: int) -> tuple[CostProfile, dict]:
    """The form fitted to the sums of kernels, and its error by region."""
    regions, grid = zip(*works(instance, kv_tokens), strict=True)
    seconds = np.array([instance.seconds(w) for w in grid])
    prefill, pairs, context, kv, decoding = np.array([w.arguments for w in grid]).T
    knots = [k for k in KNOTS if k <= max(prefill + decoding)]
    rows = np.column_stack([hats(prefill + decoding, knots), pairs, context, kv, decoding])
    x = relative_fit(rows, seconds, even_weights(regions))
    error = region_errors(regions, rows @ x, seconds)
    table = np.cumsum(x[:len(knots)])
    tail = [significant(v) for v in x[len(knots):]]
    contexts = [c for w in grid for _, c in w.chunks if c]
    fitted = {"prefill_tokens": spread(prefill), "context_tokens": spread(contexts), "decode_seqs": spread(decoding),
              "decode_kv_tokens": spread(kv)}
    return CostProfile(name, ALONE_S, 0.0, tail[2], tail[3], tail[0], kv_tokens, budget, per_context_s=tail[1],
                       batch_tokens=tuple(map(float, knots)), batch_s=tuple(significant(v) for v in table),
                       fitted=fitted), {r: error[r] for r in REGIONS}


def spread(values) -> tuple[float, float]:
    """Least value above 0 and greatest."""
    found = [float(v) for v in values if v > 0]
    return min(found), max(found)


def significant(value: float) -> float:
    """Rounded to what the tables can carry, so that a profile does not depend on the last bits of a processor."""
    return float(f"{value:.{DIGITS}g}")


def rounded(errors: dict[str, dict]) -> dict[str, dict]:
    return {r: {k: v if k == "points" else round(v, 4) for k, v in e.items()} for r, e in errors.items()}


def host(data: Path) -> tuple[float, float]:
    """The host's seconds an iteration and a decode, from served runs that no shipped profile describes."""
    found = []
    for tp in HOST_TP:
        model = MODELS["qwen3-32b"]
        instance = Instance(data, "h100", model, tp)
        room = pool(model, instance.system.memory_gib, tp).tokens
        kernels, _ = kernel_profile("host", instance, room, BUDGET["h100"])
        found += [(kernels, loop, request) for loop, request, *_ in served(data, model, tp)]
    base, sequence = host_time(found)
    return significant(base), significant(sequence)


def build(data: Path, name: str, host_s: tuple[float, float], console: Console) -> CostProfile:
    """One profile with its provenance; its tables are printed."""
    gpu, model_name, tp = PROFILES[name]
    model, instance = MODELS[model_name], Instance(data, gpu, MODELS[model_name], tp)
    kv_tokens = pool(model, instance.system.memory_gib, tp).tokens
    kernels, errors = kernel_profile(name, instance, kv_tokens, BUDGET[gpu])
    profile = with_host(kernels, *host_s)
    profile = replace(profile, per_seq_s=significant(profile.per_seq_s))
    console.print(error_table(f"{name}: fit against the sums of kernels", errors))
    checks = against_llmservingsim(data, instance)
    if gpu == "h100" and model_name in ("qwen3-32b", "llama3.1-8b"):
        checks |= against_serving(data, profile, model, tp)
    if model_name == "llama3-70b":
        checks |= against_splitwise(data, profile, gpu, tp)
    if checks:
        console.print(error_table(f"{name}: against other measurements (+: we are slower)", checks, "measurement"))
    return replace(profile, provenance={
        "kind": "fitted", "gpu": f"{gpu.upper()}-SXM-80GB", "model": model_name, "tp": tp,
        "dtype": "bfloat16 weights and KV", "command": f"python benchmarks/profiles/fit.py --only {name}",
        "sources": [s | {"use": s["use"].format(version=VLLM[gpu])} for s in SOURCES],
        "grid": "benchmarks/profiles/grid.py", "error_by_region": rounded(errors), "validation": rounded(checks),
        "pool": f"{UTILISATION:g} of {instance.system.memory_gib:g} GiB a GPU, less weights and {RESERVE_GIB:g} GiB",
        "interpolated": sorted(instance.notes), "assumptions": assumptions(gpu, host_s)})


def assumptions(gpu: str, host_s: tuple[float, float]) -> list[str]:
    return [
        "An iteration is the sum of its kernels: none overlap, no gaps between them inside an iteration.",
        f"Norms, rotary embedding and activation are {ELEMENTWISE_A_LAYER} kernels a layer (one more with norms of q "
        "and k) at the system file's latency and effective memory bandwidth; they are not in the tables.",
        f"Sampling reads the logits {LOGIT_PASSES} times at that bandwidth; every scheduled sequence makes one row.",
        "A chunk of n tokens at context c takes what a prompt of c + n takes beyond one of c, at least what the chunk "
        "takes alone and at least one decode at that context: the tables have no prefill with a cached prefix.",
        *(["FlashAttention 2 does not split a chunk's context: it takes at least one thread block's walk over it, as "
           "measured on one head's cold prompts. Decodes beside a chunk are not split either; that is not in the form, "
           "so iterations that mix chunks with decodes of long contexts take longer than this profile says."]
          if gpu in WALKS else ["FlashAttention 3 splits a chunk's context over the GPU, as it does a decode's."]),
        "Attention of decodes and of prefill chunks in one iteration add up.",
        "All-reduce is vLLM's inside a CUDA graph at every size: launches of eager prefill hide behind kernels.",
        f"Host: {host_s[0] * 1e3:.3g} ms an iteration and {host_s[1] * 1e6:.3g} us a decode, from runs of Qwen3-32B at "
        "TP " + " and ".join(map(str, HOST_TP)) + " on H100 under vLLM 0.12"
        + ("; assumed equal on A100, for which there are no such runs." if gpu == "a100" else "."),
    ]


def main() -> None:
    shipped = Path(str(files("saga_rl.sim.cost").joinpath("profiles")))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the tables")
    parser.add_argument("--only", help="one of: " + ", ".join(PROFILES))
    parser.add_argument("--out", type=Path, default=shipped, help="folder for the profiles")
    args = parser.parse_args()

    def run() -> None:
        if args.only is not None and args.only not in PROFILES:
            raise unknown_name("profile", args.only, PROFILES)
        names = [args.only] if args.only else list(PROFILES)
        for name in names:
            check_target(args.out / f"{name}.json")
        console = Console(width=120)
        with Console(stderr=True).status("pricing served runs for the host's time"):
            host_s = host(args.data)
        console.print(f"host: {host_s[0] * 1e3:.3g} ms an iteration, {host_s[1] * 1e6:.3g} us a decode")
        for name in names:
            profile = build(args.data, name, host_s, console)
            profile.save(args.out / f"{name}.json")
            console.print(f"{args.out / name}.json")

    run_user_command(run)


if __name__ == "__main__":
    main()
