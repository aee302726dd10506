"""`saga-rl bench` on one GPU at a real model shape, with random weights.

    python benchmarks/gpu/gain.py TRACE... --out DIR [--shape qwen2.5-7b] [--kv-tokens 200000] [--window 131072]
                                  [any option of saga-rl bench]

Writes a model folder without weights (`--load-format dummy`) below DIR and calls `saga-rl bench` with it: one engine a
server, one server after the other. For the cost model's constants of the same GPU: `saga-rl profile fit`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))


def card() -> tuple[str, float]:
    """Name and GiB of the first GPU. `UserError` where there is none."""
    from saga_rl.errors import UserError

    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        raise UserError("nvidia-smi", "finds no GPU", "run it where there is one; without, saga-rl bench --emulate"
                        ) from None
    name, _, mib = told.rpartition(",")
    return name.strip(), float(mib) / 1024


def words(argv: list[str]) -> list[str]:
    """The command line of `saga-rl`, the model written. Raises `UserError`."""
    from shapes import SHAPES, check_memory, write_model

    from saga_rl.errors import unknown_name

    first = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    p = argparse.ArgumentParser(prog="gain.py", usage="gain.py TRACE... --out DIR [options]", allow_abbrev=False)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--shape", default="qwen2.5-7b", help=", ".join(SHAPES))
    p.add_argument("--kv-tokens", type=int, default=200_000, help="KV pool")
    p.add_argument("--window", type=int, default=131_072, help="longest context")
    p.add_argument("--arms", default="stock,likely,infinite")
    args, more = p.parse_known_args(argv[first:])
    if args.shape not in SHAPES:
        raise unknown_name("shape", args.shape, SHAPES)
    shape, (_, gib) = SHAPES[args.shape], card()
    check_memory(shape, args.kv_tokens, gib)
    # What vLLM checks before it takes the number of blocks that it is told.
    share = (check_memory(shape, args.window, gib) + 1.0) / gib
    args.out.mkdir(parents=True, exist_ok=True)
    model = write_model(shape, args.out / args.shape, args.window)
    return ["bench", *argv[:first], "--out", str(args.out), "--arms", args.arms, "--model", str(model),
            "--engines", "1", "--kv-tokens", str(args.kv_tokens), "--window", str(args.window), *more,
            "--load-format", "dummy", "--gpu-memory-utilization", f"{share:.3f}"]


def main(argv: list[str] | None = None) -> None:
    from saga_rl.cli.main import app, run_user_command

    given = sys.argv[1:] if argv is None else argv
    run_user_command(lambda: app(words(given)))


if __name__ == "__main__":
    main()
