"""Search for policies that decide together (order, admission, eviction, or placement) by whole simulated runs.

CMA-ES over the numbers of small scorers, see `saga_rl.learn.search.cma_es`. Writes one checkpoint for each decision
into OUT, which serves as a whole: `saga-rl serve MODEL --policy OUT`. Judged against the best hand-made rule on the
same runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from saga_rl.cli.ray_option import Ray
from saga_rl.errors import UserError, unknown_name
from saga_rl.files import check_target
from saga_rl.learn.script import check_range, numbers, progress, words
from saga_rl.learn.tracking import WandbRun
from saga_rl.policies.parameters import EXPIRY_S


def main(
    traces: Annotated[list[str], Argument(metavar="TRACE", help="Trace files to search on, or workload:NAME, the "
                                          "training sessions of that workload. Behind it @ends: clients announce the "
                                          "end of a session; @load=X: open arrivals, X times as fast as the trace's, "
                                          "or at X of the workload's peak.")],
    out: Annotated[Path, Option(help="Folder for the checkpoints, one sub-folder a decision.")],
    validation: Annotated[str, Option(help="Trace files that choose the best, in the same order, with , between "
                                           "(workload:NAME: its validation sessions), each with its trace's @.")],
    population: Annotated[str, Option(help="Sessions alive at once on each trace (0 = its arrivals).")] = "12",
    sessions: Annotated[int, Option(help="Sessions of one episode; 0 = three times the population.")] = 0,
    kv_tokens: Annotated[str, Option(help="KV pool of a worker, tokens; one, or one for each trace.")] = "240000",
    workers: Annotated[int, Option(help="Workers; placement needs at least 2.")] = 1,
    profile: Annotated[str | None, Option(help="Cost profile of the workers: one that ships, or the file that `saga-rl "
                                          "profile fit` wrote of your server.")] = None,
    block_tokens: Annotated[int, Option(help="As the server's --block-size.")] = 16,
    max_num_seqs: Annotated[int, Option(help="As the server's.")] = 256,
    max_batched_tokens: Annotated[int, Option(help="As the server's --max-num-batched-tokens; 0 = the profile's.")] = 0,
    expiry_s: Annotated[float, Option(help="As the server's --expiry-s.")] = EXPIRY_S,
    decisions: Annotated[str, Option("--decisions", "--seams", help="What is searched, with commas between.")]
    = "eviction,ordering,admission",
    beside: Annotated[str, Option(help="DECISION=SPEC of what is not searched, with ; between; else saga+'s.")] = "",
    units: Annotated[int, Option(help="ReLU units beside the linear part of each scorer.")] = 0,
    generations: Annotated[int, Option(help="Generations.")] = 40,
    candidates: Annotated[int, Option(help="Candidates of a generation.")] = 16,
    episodes: Annotated[int, Option(help="Episodes of each trace and candidate.")] = 2,
    checks: Annotated[int, Option(help="Validation episodes of each trace at every fourth generation.")] = 4,
    start: Annotated[str, Option(help="Folder of an earlier search to go on from, one checkpoint a decision; empty: "
                                      "the best rules found by hand. A decision that was trained there, not "
                                      "searched, stays as it is.")] = "",
    trained: Annotated[str, Option(help="DECISION=FOLDER of a checkpoint that was trained otherwise, with ; between: "
                                        "tried at the end in the place of what was searched.")] = "",
    sigma: Annotated[float, Option(help="First step size, in scaled units.")] = 0.1,
    jobs: Annotated[int, Option(help="Processes.")] = 2,
    ray: Ray = "",
    seed: Annotated[int, Option(help="The weights follow from it.")] = 0,
    wandb: Annotated[str, Option(help="disabled, offline (written beside --out) or online.")] = "offline",
    project: Annotated[str, Option(help="W&B project.")] = "saga-rl",
    run_dir: Annotated[Path | None, Option(help="Where journal, picture and W&B's files go; default: OUT's folder.")]
    = None,
    note: Annotated[str, Option(help="A line for the cards, e.g. how the whole pipeline is run.")] = "",
) -> None:
    """Search for order, admission and eviction (or placement) policies on whole simulated runs."""
    from saga_rl.env.episodes import sim_config
    from saga_rl.experiments.place import place
    from saga_rl.learn.search.checkpoints import by_hand, left_to_search, save_set
    from saga_rl.learn.search.cma_es import SearchConfig, search
    from saga_rl.learn.search.picture import search_picture
    from saga_rl.learn.search.scenarios import scenario, wanted
    from saga_rl.policies.base import DECISIONS

    for option, value, low, high in (("--units", units, 0, 64), ("--generations", generations, 1, 1e5),
                                     ("--candidates", candidates, 4, 1024), ("--episodes", episodes, 1, 100),
                                     ("--checks", checks, 1, 100),
                                     ("--sigma", sigma, 1e-6, 10), ("--jobs", jobs, 1, 256), ("--seed", seed, 0, 2**30),
                                     ("--workers", workers, 1, 4096), ("--sessions", sessions, 0, 1e6)):
        check_range(option, value, low, high)
    searched = _decisions(decisions, workers)
    others = _others(beside, searched)
    tried = _trained(trained, searched)
    rules = by_hand()
    reference: dict[str, str] = {s: rules[s] if s in searched else others[s] for s in DECISIONS}
    if start:
        left, others = left_to_search(start, searched, units, others)
        for decision in (d for d in searched if d not in left):
            Console().print(f"{decision} stays as it is in {start}: trained, not searched, or with other --units",
                            highlight=False, soft_wrap=True)
        searched = left
    counts = _each("--population", population, 0, traces)
    pools = _each("--kv-tokens", kv_tokens, 16, traces)
    held = words(validation)
    if len(held) != len(traces):
        raise UserError("--validation", f"names {len(held)} files for {len(traces)} traces", "name one for each")
    if not out.parent.is_dir():
        raise UserError(out, f"its folder {out.parent} does not exist", "create it or name another place")
    folder = run_dir or out.parent
    journal = folder / f"{out.name}.search.jsonl"
    check_target(journal)
    asked = [wanted(t) for t in traces]
    clusters = [replace(sim_config(kv, workers, profile=profile), block_tokens=block_tokens, max_num_seqs=max_num_seqs,
                        max_batched_tokens=max_batched_tokens, expiry_s=expiry_s) for kv in pools]
    train = [scenario(a, "train", n, sessions, c) for a, n, c in zip(asked, counts, clusters, strict=True)]
    judged = [scenario(replace(a, source=wanted(h).source), "validation", n, sessions, c)
              for h, a, n, c in zip(held, asked, counts, clusters, strict=True)]
    config = SearchConfig(tuple(searched), units, generations, candidates, episodes, sigma, checks=checks, seed=seed,
                          others=others, trained={s: x for s, x in tried.items() if s in searched}, reference=reference)
    if start:
        config = replace(config, start=tuple(config.vector().of_checkpoints(start).tolist()))
    with (place(jobs, ray, out) as chosen,
          WandbRun(wandb, project, out, dict(vars(config)), "search", run_dir) as tracker):
        with progress() as bar:
            job = bar.add_task("searching", total=generations + 1, note="compiling, first generation")

            def on_generation(g: int, curves: dict[str, float]) -> None:
                tracker.log(curves, g)
                bar.update(job, completed=g + 1, note=f"best on validation {curves['validation']:+.4f}, "
                                                      f"step {curves['sigma']:.3f}")

            found = search(train, judged, config, journal, chosen, on_generation)
        facts = [f"{a.described()}; {w.origin()}" for a, w in zip(train, asked, strict=True)]
        save_set(out, found, config, facts, note, seed)
        search_picture(found.curve, folder / f"{out.name}.search.png")
        tracker.summary({"validation_cost": found.validation_cost, "start_cost": found.start_cost})
    Console().print(f"{out}: cost on validation sessions {found.validation_cost:+.4f} against the reference rule "
                    f"(started at {found.start_cost:+.4f}), {found.runs:,} simulated episodes", highlight=False,
                    soft_wrap=True)


def _decisions(text: str, workers: int) -> list[str]:
    from saga_rl.policies.base import DECISIONS

    searched = words(text)
    for decision in searched:
        if decision not in DECISIONS:
            raise unknown_name("decision", decision, DECISIONS)
    if not searched or len(set(searched)) < len(searched):
        raise UserError("--decisions", f"is {text!r}", "name each decision once")
    if "placement" in searched and workers < 2:
        raise UserError("--decisions", "placement is no choice with one worker", "give --workers 2 or more")
    return searched


def _others(text: str, searched: list[str]) -> dict[str, str]:
    from saga_rl.policies.presets import PRESETS
    from saga_rl.policies.registry import make

    others = {s: spec for s, spec in PRESETS["saga+"].items() if s not in searched}
    for part in filter(None, text.split(";")):
        decision, _, spec = part.partition("=")
        if decision not in others:
            raise UserError("--beside", f"{decision!r} is searched or no decision", f"choose from {', '.join(others)}")
        make(decision, spec)  # type: ignore[arg-type]
        others[decision] = spec
    return others


def _trained(text: str, searched: list[str]) -> dict[str, str]:
    from saga_rl.policies.registry import make

    found = {}
    for part in filter(None, text.split(";")):
        decision, _, folder = part.partition("=")
        if decision not in searched:
            raise UserError("--trained", f"{decision!r} is not searched", f"choose from {', '.join(searched)}")
        make(decision, f"learned:{folder}")  # type: ignore[arg-type]
        found[decision] = folder
    return found


def _each(option: str, text: str, low: float, traces: list[str]) -> list[int]:
    """One number for each trace; a single one is for all."""
    values = [int(v) for v in numbers(option, text, low)]
    if len(values) not in (1, len(traces)):
        raise UserError(option, f"names {len(values)} numbers for {len(traces)} traces", "give one, or one for each")
    return values * len(traces) if len(values) == 1 else values
