"""What serving with a policy costs: stock vLLM's scheduler against ours in one run, without a model.

    python benchmarks/serving.py [--policies lru,saga,saga+,checkpoints/joint] [--out runs/serving] [--quick]

Prints and writes (`serving.json`, `serving.svg`): CPU time of one step by scene, with 1,000 idle sessions and 256
running requests; time of a placement decision among 64 engines; memory of an idle session. Schedulers take turns step
by step in one process, so what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from serving_kit import memory, placement, show, steps  # vLLM has to come before numba
from serving_kit.engine import MOST_LEN

from saga_rl.files import write_json
from saga_rl.policies.presets import preset
from saga_rl.provenance import provenance
from saga_rl.runtime.tiny_model import build_tiny_model

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policies", default=f"lru,saga,saga+,{SHIPPED / 'joint'}")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=150, help="measured steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=11_000, help="idle sessions for the memory figure")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/serving"))
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.idle, args.running, args.steps, args.rounds, args.sessions = 100, 24, 15, 1, 1200
    console = Console(width=150)
    names = args.policies.split(",")
    policies = {Path(name).name if "/" in name else name: preset(name) for name in names}
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(folder, max_len=MOST_LEN)
        scenes = {scene.name: steps.compare(steps.measure(scene, policies, model, args.idle, args.running, args.steps,
                                                          args.rounds)) for scene in steps.SCENES}
        console.print(show.steps_table(scenes))
        held = memory.measure(policies, model, args.sessions // 11, args.sessions)
    placed = placement.measure(policies, args.workers, 5 * args.idle, 5 * args.idle)
    console.print(show.others_table(placed, held, args.workers))
    show.picture(scenes, args.out / "serving.svg")
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "policies")}
    write_json(args.out / "serving.json", {
        "steps": scenes, "placement": placed, "bytes_a_session": held, "settings": {**settings, "policies": names},
        "provenance": provenance(seed=0, trace=None)})
    console.print(f"written: {args.out}/serving.json, serving.svg")


if __name__ == "__main__":
    main()
