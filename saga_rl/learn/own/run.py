"""The order of it all: read, look for pressure, search, judge, choose, write. Nothing is written before there is
something to search for, and finished runs are never done again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from saga_rl.aeg.io import read_trace, write_trace
from saga_rl.aeg.trace import Trace
from saga_rl.errors import UserError
from saga_rl.experiments import journal, pool
from saga_rl.experiments.cell import Result
from saga_rl.experiments.compare.settings import FIRST_SEED
from saga_rl.experiments.journal import Head, Journal, Kind
from saga_rl.experiments.runner import Runner
from saga_rl.experiments.simulated import Processes
from saga_rl.learn.own import cells, find, rule, world
from saga_rl.learn.own.default import write_preset
from saga_rl.learn.own.material import PARTS, Material, files_of, identity, material, read
from saga_rl.learn.own.settings import SEARCH_ROUNDS, TEST_ROUNDS, Settings
from saga_rl.learn.own.verdict import BARE, EAGER, INFINITE, Figures, chosen, figures
from saga_rl.learn.own.world import Pressure, World
from saga_rl.learn.tracking import WandbRun
from saga_rl.policies.base import DECISIONS
from saga_rl.policies.parameters import DEFAULT_PRESET
from saga_rl.policies.presets import PRESETS
from saga_rl.provenance import sha256
from saga_rl.sim.cost.profile import load_profile

KIND = Kind("saga-rl learn", "learning run", anew="repeat it with the flags and files of then, or name another --out")
INPUT = "trace"
LIKELY, SHIPPED = "likely", "shipped checkpoint"


@dataclass(frozen=True)
class Outcome:
    """Everything that the page is made of. facts: of the trace; searches: what each came to."""

    settings: Settings
    facts: dict[str, Any]
    world: World
    searches: list[dict[str, Any]]
    figures: Figures
    choice: rule.Choice
    code: str


def run(paths: Sequence[Path], s: Settings, out: Path, jobs: pool.Jobs, console: Console, wandb: str, project: str
        ) -> Outcome:
    """Learn in the folder `out`. Raises `UserError`; what is finished is then kept."""
    code = cells.code()
    ours = journal.state_of(out, KIND) == "ours"
    files = files_of(paths)
    own_profile = {"profile": sha256(s.profile)} if Path(s.profile).suffix == ".json" else {}
    asked = Head(code, s.as_json(), {INPUT: {"identity": identity(files) | own_profile}})
    entry: Mapping[str, Any] = journal.check_same(out, KIND, asked).inputs.get(INPUT, {}) if ours else {}
    with tempfile.TemporaryDirectory(prefix="saga-rl-learn-", dir=pool.scratch_parent(jobs, out)) as scratch:
        if not _there(out, entry):
            entry = dict(asked.inputs[INPUT]) | _prepare(files, paths, s, Path(scratch), jobs, console)
        console.print(f"sessions: {_sessions(entry['facts'])}", markup=False, highlight=False, soft_wrap=True)
        here = _world(entry)
        console.print(f"world: {here.described()}; vLLM as it is takes {here.pressure.ratio:.2f} times as "
                      "long as with infinite memory", markup=False, highlight=False, soft_wrap=True)
        out.mkdir(exist_ok=True)
        with journal.opened(out, KIND, Head(code, asked.what, {INPUT: entry})) as opened:
            (out / cells.TRACES).mkdir(exist_ok=True)
            for part in PARTS:
                made = Path(scratch) / cells.TRACES / f"{part}.parquet"
                if made.exists():
                    shutil.move(made, out / cells.TRACES / made.name)
            with WandbRun(wandb, project, out, s.as_json(), "learn", out) as tracker:
                searches = _search(s, here, entry, opened, jobs, console, tracker)
                judged = _judge(s, here, entry, opened, own_profile, code, jobs, console)
                choice = chosen(judged)
                _serve(out, choice, s)
                tracker.summary({"serves": choice.serves, **{
                    f"over/{other}": ratio["tct_mean_s"] and ratio["tct_mean_s"]["ratio"]
                    for other, ratio in judged["arms"][rule.FOUND]["over"].items()}})
            return Outcome(s, entry["facts"], here, searches, judged, choice, code)


def _sessions(facts: Mapping[str, Any]) -> str:
    """What the trace held, in a line."""
    parts = ", ".join(f"{n} {part}" for part, n in facts["parts"].items())
    gone = f", {facts['left_out']} left out (longer than {facts['longest_allowed_tokens']:,} tokens, {facts['limit']})"
    return (f"{facts['sessions']} of {facts['source']} in {facts['groups']} groups{gone if facts['left_out'] else ''}; "
            f"{parts}; quality: {facts['sentence']}")


def _there(out: Path, entry: Mapping[str, Any]) -> bool:
    with suppress(OSError, KeyError):
        return all(sha256(out / cells.TRACES / f"{part}.parquet") == entry["digests"][part] for part in PARTS)
    return False


def _prepare(files: Sequence[Path], paths: Sequence[Path], s: Settings, scratch: Path, jobs: pool.Jobs, console: Console
             ) -> dict[str, Any]:
    """Read, split, and look for pressure: the entry of the head. Raises `UserError`."""
    console.print(f"reading {len(files)} file{'s' * (len(files) > 1)}", markup=False, highlight=False)
    profile = load_profile(s.profile)
    longest, limit = world.window_of(s, profile, s.kv_tokens or profile.kv_tokens)
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    made = material(read(files), name, longest, limit)
    most = world.most_alive(made.facts["parts"])
    if s.population > most:
        raise UserError("--population", f"is {s.population}, and the smallest part of the trace can feed {most} alive "
                        "at once", f"give at most {most}, or a longer trace")
    (scratch / cells.TRACES).mkdir()
    for part in PARTS:
        write_trace(made.parts[part], scratch / cells.TRACES / f"{part}.parquet")
    with pool.workers(jobs) as executor:
        pressure = _pressure(s, made, scratch, executor, most, console)
    here = World(world.config_of(s, pressure.population), s.load, pressure, {})
    world.check_pressure(pressure, here.described(), s.anyway, most)
    facts = made.facts | {"name": Path(paths[0]).name}
    return {"facts": facts, "pressure": asdict(pressure) | {"most": most},
            "digests": {part: sha256(scratch / cells.TRACES / f"{part}.parquet") for part in PARTS},
            "config": here.config, "load": s.load}


def _pressure(s: Settings, made: Material, scratch: Path, executor: Executor, most: int,
              console: Console) -> Pressure:
    train = made.parts["train"]

    def ratio(population: int) -> float:
        config = world.with_vllms_tier(world.config_of(s, population))
        n = world.of_an_episode(population, SEARCH_ROUNDS, train.n_sessions)
        specs = [cells.spec_of("train", PRESETS[rule.STOCK], config, seed, n, s.load, infinite)
                 for seed in world.SCOUTS for infinite in (False, True)]
        waiting = [pool.submit(executor, cells.run_cells, scratch, [spec]) for spec in specs]
        got = [pool.result(each)[0][0]["tct_mean_s"] for each in waiting]
        value = float(np.exp(np.mean(np.log(np.array(got[::2]) / np.array(got[1::2])))))
        what = f"{population} alive" if population else "these arrivals"
        console.print(f"  {what}: vLLM as it is takes {value:.2f} times as long as with infinite memory", markup=False,
                      highlight=False)
        return value

    console.print("looking for pressure (the simulator is compiled once for each version, which takes minutes)",
                  markup=False, highlight=False, soft_wrap=True)
    pool.result(pool.submit(executor, pool.warm, False))
    if s.load or s.population:
        value = ratio(s.population)
        return Pressure(s.population, value, [(s.population, value)])
    context = train.steps.prompt_tokens + train.steps.output_tokens
    longest = np.maximum.reduceat(context, train.session_offsets[:-1])
    guess = world.first_guess(world.config_of(s, 0), float(np.median(longest)))
    return world.population_at(ratio, guess, most)


def _world(entry: Mapping[str, Any]) -> World:
    p, parts = entry["pressure"], entry["facts"]["parts"]
    pressure = Pressure(p["population"], p["ratio"], [(int(n), float(r)) for n, r in p["tried"]])
    rounds = {"train": SEARCH_ROUNDS, "validation": SEARCH_ROUNDS, "test": TEST_ROUNDS}
    return World(entry["config"], entry["load"], pressure, {
        part: world.of_an_episode(pressure.population, rounds[part], parts[part]) for part in PARTS})


def _search(s: Settings, w: World, entry: Mapping[str, Any], opened: Journal, jobs: pool.Jobs, console: Console,
            tracker: WandbRun) -> list[dict[str, Any]]:
    """All searches, or what the journal says of them."""
    done = [line for line in opened.notes if line["kind"] == "searches"]
    if done and (opened.out / find.FOUND).is_dir():
        return done[-1]["searches"]
    parts: dict[str, Trace] = {part: read_trace(opened.out / cells.TRACES / f"{part}.parquet") for part in PARTS}
    each = entry["facts"]["steps_of_a_session"]["train"] * w.sessions["train"]
    generations = s.spending.fitted(each)
    step = 0

    def log(start: str, g: int, curves: dict[str, float]) -> None:
        nonlocal step
        tracker.log({f"{start}/{key}": value for key, value in curves.items() if np.isfinite(value)}, step)
        step += 1

    results = find.summaries(find.find(s, w, parts, generations, opened.out, jobs, console, log))
    opened.note({"kind": "searches", "searches": results})
    return results


def _arms(s: Settings, out: Path) -> dict[str, dict[str, str]]:
    """By name, the policies of each arm, what was found last."""
    shipped = find.shipped()
    presets = dict.fromkeys((rule.STOCK, LIKELY, DEFAULT_PRESET))
    return {**{name: dict(PRESETS[name]) for name in presets},
            **({SHIPPED: {"set": str(shipped)}} if shipped else {}), rule.FOUND: {"set": str(out / find.FOUND)}}


def _judge(s: Settings, w: World, entry: Mapping[str, Any], opened: Journal, digests: Mapping[str, str], code: str,
           jobs: pool.Jobs, console: Console) -> Figures:
    """Every arm on test sessions; what the journal holds is not run again."""
    arms = _arms(s, opened.out)
    n = w.sessions["test"] or entry["facts"]["parts"]["test"]
    bare = {k: v for k, v in w.config.items() if k not in ("cpu_tokens", "offloading")}
    seeds = range(FIRST_SEED, FIRST_SEED + s.spending.arrangements)
    theirs = world.with_vllms_tier(w.config)
    specs = {(arm, seed): cells.spec_of("test", policies, theirs if arm == rule.STOCK else w.config, seed, n, w.load)
             for arm, policies in arms.items() for seed in seeds}
    for seed in seeds:
        if s.lazy_offload:
            specs[EAGER, seed] = cells.spec_of("test", PRESETS[DEFAULT_PRESET], theirs, seed, n, w.load)
        specs[INFINITE, seed] = cells.spec_of("test", PRESETS[rule.STOCK], w.config, seed, n, w.load, True)
        if s.cpu_tokens:
            specs[BARE, seed] = cells.spec_of("test", PRESETS[rule.STOCK], bare, seed, n, w.load)
    keyed = {key: cells.cell_of(spec, code, {**entry["digests"], **digests}) for key, spec in specs.items()}
    with pool.workers(jobs) as executor:
        backend = Processes(executor, cells.run_cells, opened.out, open_loop=False)
        results: dict[tuple[str, int], Result] = Runner(opened, backend, console).run("judging on test sessions", keyed)
    names = [INFINITE, *([BARE] if s.cpu_tokens else []), *([EAGER] if s.lazy_offload else []), *arms]
    return figures({arm: [results[arm, seed] for seed in seeds] for arm in names}, DEFAULT_PRESET)


def _serve(out: Path, choice: rule.Choice, s: Settings) -> None:
    """Make `out` serve what was chosen."""
    for decision in DECISIONS:
        shutil.rmtree(out / decision, ignore_errors=True)
    if choice.serves == rule.FOUND:
        for decision in DECISIONS:
            if (out / find.FOUND / decision).is_dir():
                shutil.copytree(out / find.FOUND / decision, out / decision)
    else:
        write_preset(out, choice.serves, choice.why, {"found_by": "saga-rl learn", "seed": s.seed})
