"""The command line of `benchmarks/serving_gain.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from gain_kit.demand import pools
from gain_kit.engines import CPU
from gain_kit.journal import Journal
from gain_kit.judge import judge
from gain_kit.material import draw, stocks
from gain_kit.measure import Bench, measure
from gain_kit.own import make_own
from gain_kit.settings import ARMS, OWN, Setup
from gain_kit.show import HEAD, TENANT_HEAD, caption, picture, rows, table, tenant_rows, update_markdown
from saga_rl.demo.stages import StageFailed
from saga_rl.errors import EXIT_BAD_INPUT, UserError
from saga_rl.files import locked, must_exist, write_json
from saga_rl.runtime.tiny_model import build_tiny_model

SMOKE: dict[str, Any] = {"arms": ("stock", "saga+"), "pressures": (1.4,), "repeats": 1, "sessions": 8, "alive": 6,
                         "engines": 1, "steps": (4, 8), "expiry_s": 3.0}


def parser(prog: str) -> argparse.ArgumentParser:
    """Flags that the CPU and the GPU benchmark share."""
    p = argparse.ArgumentParser(prog=prog)
    p.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real traces")
    p.add_argument("--out", type=Path, default=Path("runs") / prog.removesuffix(".py"),
                   help="journal, logs, result.json and picture; a journal that is there is continued")
    p.add_argument("--arms", default=",".join(ARMS), help="comma-separated; stock must be among them")
    p.add_argument("--pressures", default="1.4,2.5", help="live demand for KV over the pool")
    p.add_argument("--repeats", type=int)
    p.add_argument("--sessions", type=int, help="a run")
    p.add_argument("--alive", type=int, help="sessions alive at once")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--checkpoint", help="folder for the arm checkpoint (checkpoints/joint-hidden)")
    p.add_argument("--ends", action="store_true", help="clients tell an agent's last request")
    p.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between the marks of this page")
    p.add_argument("--plan", action="store_true", help="print sessions, demand and pools, and end")
    p.add_argument("--report", action="store_true", help="show what the journal has; nothing is run")
    return p


def chosen(args: argparse.Namespace, **preset: Any) -> Setup:
    """The set-up that the flags name, over `preset`."""
    try:
        named = {"arms": tuple(args.arms.split(",")), "pressures": tuple(float(x) for x in args.pressures.split(","))}
    except ValueError:
        raise UserError("--pressures", f"{args.pressures!r} are no numbers", "write e.g. 1.4,2.5") from None
    given = {k: v for k in ("repeats", "sessions", "alive") if (v := getattr(args, k)) is not None}
    policies: tuple[tuple[str, str], ...] = ((OWN, str(args.out / "own" / "checkpoint")),)
    policies += (("checkpoint", args.checkpoint),) if args.checkpoint else ()
    return Setup(**({**named, "seed": args.seed, "ends": args.ends, "policies": policies} | preset | given))


def bench_of(setup: Setup, args: argparse.Namespace, model: Path, env: dict[str, str], console: Console,
             extra: tuple[str, ...] = ()) -> Bench:
    """Sessions drawn, pools computed, journal opened."""
    args.out.mkdir(parents=True, exist_ok=True)
    found = stocks(setup, args.data, args.out)
    for stock in found:
        t, factor, slower = stock.trace, 1 / stock.source.length_factor, 1 / stock.source.time_factor
        console.print(f"{stock.source.name}: {t.n_sessions} of {stock.imported} sessions may be drawn, "
                      f"{t.n_steps / t.n_sessions:.1f} steps each, mean context "
                      f"{(t.steps.prompt_tokens + t.steps.output_tokens).mean():.0f} tokens after scaling by "
                      f"1/{factor:g}, times by 1/{slower:g}", markup=False, soft_wrap=True)
    traces = [draw(found, setup, r) for r in range(setup.repeats + 1)]
    size = pools(traces[:setup.repeats], setup)
    steps = sum(t.n_steps for t in traces[:setup.repeats]) / setup.repeats
    console.print(f"{setup.sessions} sessions a run ({steps:.0f} steps), {setup.alive} alive: live demand "
                  f"{size.demand:,.0f} KV tokens ({min(size.demands):,.0f} to {max(size.demands):,.0f}); an engine has "
                  + ", ".join(f"{n:,} tokens at {p:g}x" for p, n in zip(setup.pressures, size.tokens, strict=True))
                  + f", {size.whole:,} with infinite memory", markup=False, soft_wrap=True)
    key = setup.as_dict() | {"pools": {"demand": size.demand, "demands": size.demands, "tokens": size.tokens,
                                       "whole": size.whole}, "extra": extra, "model": model.name}
    return Bench(setup, traces, size, model, args.out, Journal(args.out / "journal.jsonl", key), console, env, extra)


def report(bench: Bench, markdown: Path | None, console: Console) -> None:
    """Table, result.json, picture, and the page if one is named, from the journal."""
    if not bench.journal.runs:
        raise UserError(bench.journal.path, "has no run yet", "leave out --report")
    result = {"setup": bench.journal.setup, "starts": bench.journal.sessions,
              "levels": judge(bench.setup, bench.journal.runs)}
    write_json(bench.folder / "result.json", result)
    console.print(table(HEAD, rows(result), "serving gain"))
    console.print(table(TENANT_HEAD, tenant_rows(result), "by tenant"))
    console.print(caption(result), markup=False, soft_wrap=True)
    if any(a["ratios"].get("tct_mean_s") for level in result["levels"] for a in level["arms"].values()):
        picture(result, bench.folder / "result.png")
    if markdown is not None:
        update_markdown(markdown, result)


def main(argv: list[str] | None = None) -> None:
    try:
        p = parser("serving_gain.py")
        p.add_argument("--engines", type=int, help="CPU engines (2)")
        p.add_argument("--smoke", action="store_true", help="two arms, one repeat, eight sessions, one engine")
        args = p.parse_args(argv)
        if args.markdown is not None:
            must_exist(args.markdown)
        preset = dict(SMOKE) if args.smoke else {}
        setup = chosen(args, **preset, **({"engines": args.engines} if args.engines else {}))
        console, out = Console(stderr=True), Console(width=None if sys.stdout.isatty() else 200)
        model = build_tiny_model(args.out / "tiny", max_len=setup.model_len)
        bench = bench_of(setup, args, model, CPU, console)
        if args.plan:
            return
        if not args.report:
            with locked(args.out, "measurement"):
                if OWN in setup.arms:
                    make_own(bench, args.data, Path(str(setup.policy(OWN))), console)
                measure(bench)
        report(bench, args.markdown, out)
    except UserError as e:
        print(e, file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except StageFailed as e:
        print(f"serving_gain.py: {e}\nWhat was measured is kept; the same command goes on.", file=sys.stderr)
        raise SystemExit(1) from None
