"""What serving with a policy costs: stock vLLM's scheduler against ours in one run, without a model.

    python benchmarks/serving.py [--policies lru,saga,saga+,FOLDER,...] [--out runs/serving] [--quick]
                                 [--markdown docs/explanation/serving-cost.md]

Prints and writes (`serving.json`, `serving.svg`): CPU time of one step by scene, with 1,000 idle sessions and 256
running requests; time of a placement decision among 64 engines; memory of an idle session; and, with two real servers
(`--no-server` leaves them out), what a request costs more and the throughput of traffic without agents. Whatever is
compared takes turns, so what else the machine does meets all of it alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from serving_kit import memory, placement, server, show, steps  # vLLM has to come before numba
from serving_kit.engine import MOST_LEN

from saga_rl.files import must_exist, write_json
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import preset
from saga_rl.replay.tiny_model import build_tiny_model

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policies", default=f"lru,likely,{DEFAULT_PRESET},{SHIPPED / 'joint-hidden'}")
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=150, help="measured steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=11_000, help="idle sessions for the memory figure")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/serving"))
    parser.add_argument("--requests", type=int, default=600, help="for the time of one request at a server")
    parser.add_argument("--server-rounds", type=int, default=12, help="for the throughput of a server")
    parser.add_argument("--no-server", action="store_true", help="no real servers")
    parser.add_argument("--only-server", action="store_true", help="nothing but the two real servers, no page")
    parser.add_argument("--served", default=DEFAULT_PRESET, help="policy of the real server beside stock's")
    parser.add_argument("--only-steps", action="store_true", help="nothing but the scheduling steps, no page")
    parser.add_argument("--markdown", type=Path, help="put the tables between the marks of this page")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.idle, args.running, args.steps, args.rounds, args.sessions = 100, 24, 15, 1, 1200
        args.requests, args.server_rounds = 20, 2
    if args.only_server and (args.no_server or args.markdown):
        parser.error("--only-server goes with neither --no-server nor --markdown")
    if args.only_steps and (args.only_server or args.markdown):
        parser.error("--only-steps goes with neither --only-server nor --markdown")
    if args.markdown is not None:
        must_exist(args.markdown)
    console = Console(width=150)
    names = args.policies.split(",")
    policies = {Path(name).name if "/" in name else name: preset(name) for name in names}
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(folder, max_len=MOST_LEN)
        served = None if args.no_server or args.only_steps else server.measure(
            args.served, model, args.out, args.requests, args.server_rounds, 4 if args.quick else 60, console)
        if args.only_server:
            console.print(show.server_table(served))
            write_json(args.out / "server.json", {"server": served, "provenance": server.machine()})
            return
        scenes = {scene.name: steps.compare(steps.measure(scene, policies, model, args.idle, args.running, args.steps,
                                                          args.rounds)) for scene in steps.SCENES}
        steps_shown = [show.steps_table(scenes)]
        console.print(steps_shown[0])
        if args.only_steps:
            write_json(args.out / "steps.json", {"steps": scenes, "provenance": server.machine()})
            return
        held = memory.measure(policies, model, args.sessions // 11, args.sessions)
    placed = placement.measure(policies, args.workers, 5 * args.idle, 5 * args.idle)
    tables = [*steps_shown, show.others_table(placed, held, args.workers)]
    console.print(tables[-1])
    if served is not None:
        tables.append(show.server_table(served))
        console.print(tables[-1])
    show.picture(scenes, args.out / "serving.svg")
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "policies", "markdown")}
    where = server.machine()
    write_json(args.out / "serving.json", {
        "steps": scenes, "placement": placed, "bytes_a_session": held, "server": served,
        "settings": {**settings, "policies": names}, "provenance": where})
    if args.markdown is not None:
        show.update_markdown(args.markdown, tables, where)
    console.print(f"written: {args.out}/serving.json, serving.svg")


if __name__ == "__main__":
    main()
