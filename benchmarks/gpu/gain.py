"""The serving gain on one GPU at a real model shape, and the cost model's constants measured on the way.

    python benchmarks/gpu/gain.py [--shape qwen2.5-7b] [--arms stock,saga+,infinite] [--out DIR] [--dry]

One engine a server with random weights; the servers of all arms share the card, one is busy at a time. Writes what
`benchmarks/serving_gain.py` writes, and `profile.json`: prefill and decode times by length and the constants fitted to
them, as `saga-rl profile fit` does. `--dry` does all of it on the CPU with the tiny model. See `docs/serving-gain.md`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SOURCES = {"weka": 1 / 16, "katas": 1 / 6}
GPU: dict[str, Any] = {"repeats": 3, "sessions": 24, "alive": 16, "engines": 1, "max_context": 12288,
                       "block_tokens": 16, "max_num_seqs": 64, "max_batched_tokens": 8192, "dtype": "bfloat16",
                       "eager": False}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_SERVER_DEV_MODE": "1",
               "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120"}


def card() -> tuple[str, float]:
    """Name and GiB of the first GPU. `UserError` where there is none."""
    from saga_rl.errors import UserError

    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        raise UserError("nvidia-smi", "finds no GPU", "run it where there is one, or with --dry") from None
    name, _, mib = told.rpartition(",")
    return name.strip(), float(mib) / 1024


def main(argv: list[str] | None = None) -> None:
    from gain_kit.command import SMOKE, bench_of, chosen, parser, report
    from gain_kit.engines import CPU
    from gain_kit.measure import measure
    from gain_kit.own import calibrated, make_own
    from gain_kit.settings import CPU_SOURCES, OWN
    from rich.console import Console
    from shapes import SHAPES, check_memory, write_model

    from saga_rl.demo.stages import StageFailed
    from saga_rl.errors import EXIT_BAD_INPUT, UserError, unknown_name
    from saga_rl.files import locked
    from saga_rl.runtime.tiny_model import build_tiny_model

    p = parser("gpu_gain")
    p.set_defaults(arms="stock,saga+,infinite", pressures="2.5")
    p.add_argument("--shape", default="qwen2.5-7b", help=", ".join(SHAPES))
    p.add_argument("--eager", action="store_true", help="no CUDA graphs: servers start sooner, decode is slower")
    p.add_argument("--no-calibration", action="store_true", help="leave profile.json out")
    p.add_argument("--dry", action="store_true", help="on the CPU, with the tiny model: does the script work?")
    args, begin = p.parse_args(argv), time.monotonic()
    try:
        console, out = Console(stderr=True, width=160), Console(width=200)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.shape not in SHAPES:
            raise unknown_name("shape", args.shape, SHAPES)
        shape, env = SHAPES[args.shape], CPU
        extra: tuple[str, ...] = ()
        if args.dry:
            setup, device = chosen(args, **SMOKE), "CPU, dry run"
            model = build_tiny_model(args.out / "tiny", max_len=setup.model_len)
        else:
            name, gib = card()
            sources = tuple(replace(s, length_factor=SOURCES[s.name]) for s in CPU_SOURCES)
            setup, device, env = chosen(args, **GPU, sources=sources), f"one {name}", ENVIRONMENT
            setup = replace(setup, eager=args.eager)
            model = write_model(shape, args.out / args.shape, setup.model_len)
            # What vLLM checks before it takes the number of blocks that it is told.
            share = (check_memory(shape, {"one": setup.model_len}, gib) + 1.0) / gib
            extra = ("--load-format", "dummy", "--gpu-memory-utilization", f"{share:.3f}")
        bench = bench_of(setup, args, model, env, console, extra)
        if not args.dry:
            for pressure in setup.pressures:
                check_memory(shape, {a: bench.pool(a, pressure) for a in bench.arms(pressure)}, gib)
        if args.plan:
            return
        if not args.report:
            with locked(args.out, "measurement"):
                if not args.no_calibration:
                    found = calibrated(bench, 1 if args.dry else 2).provenance
                    console.print(f"profile.json: relative error {found['relative_error_rms']:.1%}, "
                                  f"{time.monotonic() - begin:.0f} s so far", markup=False)
                if OWN in setup.arms:
                    make_own(bench, args.data, Path(str(setup.policy(OWN))), console)
                measure(bench, device)
        report(bench, args.markdown, out)
        console.print(f"{time.monotonic() - begin:.0f} s in all")
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except StageFailed as e:
        print(f"gain.py: {e}\nWhat was measured is kept; the same command goes on.", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
